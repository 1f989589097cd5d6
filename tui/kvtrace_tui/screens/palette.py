"""The command palette: every action by its name, from the one table."""

from __future__ import annotations

from textual.await_complete import AwaitComplete
from textual.command import CommandList, CommandPalette, DiscoveryHit, Hit, Hits, Provider
from textual.content import Content
from textual.worker import Worker

from kvtrace_tui.action import Action
from kvtrace_tui.actions import ACTIONS
from kvtrace_tui.desk.desk import Desk


class ActionPalette(CommandPalette):
    """The palette, which survives keys that come before its list has a place on the screen.

    Its children are taken away before it is. Textual's own goes on searching meanwhile, and ends
    the app with the list that its search does not find any more.
    """

    _still = False

    def be_still(self) -> None:
        """Search no more: the palette is about to be taken away."""
        self._still = True
        self._cancel_gather_commands()
        self._stop_no_matches_countdown()
        self._stop_busy_countdown()

    def _gather_commands(self, search_value: str) -> Worker[None] | None:  # type: ignore[override]
        """Search, as long as there is a list for what is found."""
        return None if self._still else super()._gather_commands(search_value)

    def _action_command_list(self, action: str) -> None:
        """Move in the list; Textual's own raises KeyError while the list has no lines."""
        if self.query_one(CommandList).size.height:
            super()._action_command_list(action)

    def dismiss(self, result: None = None) -> AwaitComplete:
        """Leave once; see `LeavesOnce`."""
        if not self.is_active:
            return AwaitComplete()
        self.be_still()
        return super().dismiss(result)


class ActionCommands(Provider):
    """Finds actions by their words."""

    async def discover(self) -> Hits:
        """All of them, before anything is typed."""
        for action in ACTIONS:
            yield DiscoveryHit(self._words(action), lambda a=action: self._run(a), help=action.help)

    async def search(self, query: str) -> Hits:
        """Those that match."""
        matcher = self.matcher(query)
        for action in ACTIONS:
            words = self._words(action)
            if (score := matcher.match(words)) > 0:
                shown = Content(words)
                yield Hit(score, shown, lambda a=action: self._run(a), help=action.help)

    def _words(self, action: Action) -> str:
        keys = f" ({action.shown_keys})" if action.keys else ""
        return f"{action.title}{keys}"

    async def _run(self, action: Action) -> None:
        await self.screen.run_action(f"act('{action.id}')")

    @property
    def desk(self) -> Desk | None:
        """Of the screen the palette was opened over."""
        return getattr(self.screen, "desk", None)
