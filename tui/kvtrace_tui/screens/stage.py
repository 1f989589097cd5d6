"""What actions ask a screen to do: questions, the clipboard, other screens, pictures, commands.

Pages, prompts and pictures load when they are first needed: the first picture comes sooner.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kvtrace.text import safe
from kvtrace_tui.desk import jumps, moves
from kvtrace_tui.desk.cursor import Axis
from kvtrace_tui.follow import Follower

if TYPE_CHECKING:
    from kvtrace_tui.screens.main import MainScreen
    from kvtrace_tui.screens.pages.choices import Make, Rows


class ScreenStage:
    """Implements `desk.Stage` for the main screen."""

    def __init__(self, screen: MainScreen, follower: Follower) -> None:
        self._screen = screen
        self._follower = follower

    def ask(self, question: str, text: str, then: Callable[[str], None]) -> None:
        """A line of input at the foot."""
        from kvtrace_tui.screens.prompt import PromptScreen

        screen = self._screen

        def answered(answer: str | None) -> None:
            if answer is not None:
                screen.desk.message = ""
                screen.careful(lambda: then(answer))
            screen.sync()

        screen.app.push_screen(PromptScreen(question, text), answered)

    def copy(self, text: str) -> None:
        """To the clipboard of the terminal."""
        self._screen.app.copy_to_clipboard(text)

    def open(self, name: str) -> None:
        """Another screen, or the way out."""
        app = self._screen.app
        if name == "quit":
            app.exit(0)
        elif name == "palette":
            app.action_command_palette()
        elif name == "findings":
            self._open_findings()
        elif name == "branches":
            self._open_branches()
        elif name == "memory":
            self._open_memory()
        elif name == "code":
            self._open_code()
        else:
            from kvtrace_tui.screens.pages.page import page_of

            log, listens = self._follower.log, self._follower.listens
            app.push_screen(page_of(name, log, listens=listens))

    def _open_findings(self) -> None:
        """The list of findings; the chosen one is gone to."""
        from kvtrace_tui.screens.pages.findings import finding_rows

        desk = self._screen.desk
        shown = desk.found

        def make(width: int, chosen: int) -> Rows:
            nonlocal shown
            shown = desk.found
            damage = () if desk.trace is None else desk.trace.damage
            return finding_rows(desk.answer, shown, width, chosen, damage)

        at = (
            0 if desk.stop is None or desk.stop.found not in shown else shown.index(desk.stop.found)
        )
        self._choose("findings", make, at, lambda index: jumps.to_found(desk, shown[index]))

    def _open_branches(self) -> None:
        """The tree of branches; the end of the chosen line is gone to."""
        from kvtrace.analysis.branches import branches, twigs
        from kvtrace_tui.screens.pages.branches import branch_rows

        desk, trace = self._screen.desk, self._screen.desk.trace
        if trace is None:
            return
        tree = branches(trace)
        lines = twigs(tree)
        at = tree.places.get((desk.cursor.step, desk.cursor.sequence), -1)

        def make(width: int, chosen: int) -> Rows:
            return branch_rows(trace, tree, lines, at, width, chosen)

        def go(index: int) -> None:
            node = tree.nodes[lines[index].nodes[-1]]
            moved = moves.to_step(desk.cursor, trace, node.step)
            desk.go(moves.at(moved, trace, Axis.SEQUENCE, node.sequence))

        mine = next((i for i, one in enumerate(lines) if at in one.nodes), 0)
        self._choose("branches", make, mine, go)

    def _open_memory(self) -> None:
        from kvtrace_tui.screens.pages.memory import memory_rows
        from kvtrace_tui.screens.pages.page import PageScreen

        desk, trace = self._screen.desk, self._screen.desk.trace
        if trace is None:
            return
        step = desk.cursor.step
        memory_rows(trace, step, 80)  # what is wrong with it is said here, not in the page
        page = PageScreen("memory", lambda width: memory_rows(trace, step, width))
        self._screen.app.push_screen(page)

    def _open_code(self) -> None:
        from kvtrace_tui.screens.pages.code import code_rows
        from kvtrace_tui.screens.pages.page import PageScreen
        from kvtrace_tui.sources import source_of

        cursor, trace = self._screen.desk.cursor, self._screen.desk.trace
        if trace is None:
            return
        source = source_of(trace, cursor.layer, Path.cwd())
        rows, head, at = code_rows(
            trace, cursor.step, cursor.layer, source, self._screen.size.width
        )
        self._screen.app.push_screen(PageScreen("code", lambda _: rows, at=at, pinned=head))

    def _choose(self, name: str, make: Make, at: int, go: Callable[[int], None]) -> None:
        """A page to choose from."""
        from kvtrace_tui.screens.pages.choices import ChoiceScreen

        screen = self._screen

        def chosen(index: int | None) -> None:
            if index is not None:
                screen.careful(lambda: go(index))
            screen.sync()

        screen.app.push_screen(ChoiceScreen(name, make, at), chosen)

    def export(self) -> None:
        """A picture in the working directory."""
        from kvtrace_tui.screens.picture import save

        desk = self._screen.desk
        name = "kvtrace" if desk.trace is None else Path(desk.trace.name).stem
        svg = self._screen.app.export_screenshot(title=safe(name))
        try:
            path = save(svg, Path.cwd(), f"{name}-step{desk.cursor.step}")
        except OSError as error:
            desk.say(f"no picture was written: {error.strerror or error}")
            return
        desk.say(f"wrote {safe(path.name)} in the working directory")

    def next_measure(self) -> str:
        """Another number in the grid."""
        from kvtrace_tui.panes.grid import GridPane

        grid = self._screen.pane("grid")
        return grid.next_measure().value if isinstance(grid, GridPane) else ""

    def send(self, name: str, token: int = -1) -> None:
        """To the recorder."""
        self._follower.send(name, token)
        self._screen.desk.recording = self._follower.recording
