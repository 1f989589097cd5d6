"""What is shown until there is a first step: what is being done, and a way out."""

from __future__ import annotations

import time
from textwrap import wrap

from textual.app import ComposeResult
from textual.binding import Binding
from textual.screen import Screen
from textual.strip import Strip

from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.bars import bar
from kvtrace_tui.drawing.lines import line, padded, page, shown_in
from kvtrace_tui.follow import Follower
from kvtrace_tui.panes.lined import Lined

_SPIN = "◜◠◝◞◡◟"
_BAR = 40


class LoadingView(Lined):
    """Draws the follower's progress and the end of its log."""

    DEFAULT_CSS = "LoadingView { width: 1fr; height: 1fr; }"

    def __init__(self, follower: Follower, name: str) -> None:
        super().__init__()
        self._follower = follower
        self._what = name
        self._began = time.monotonic()

    def draw(self, width: int, height: int) -> list[Strip]:
        """Title, progress, log, and how to leave."""
        elapsed = time.monotonic() - self._began
        words, share = self._follower.progress
        spin = _SPIN[int(elapsed * 8) % len(_SPIN)]
        size = max(min(_BAR, width - 12), 0)
        amount = "" if share is None else f"{bar(share, size)} {share:4.0%}"
        lines = [
            line(width, (" kvtrace ", ink.BAR_KEY), (self._what, ink.BAR), fill=ink.BAR),
            line(width),
            line(width, (f"  {spin} ", ink.ACCENT), (words, ink.STRONG)),
            line(width, (f"    {amount}", ink.CACHED)),
            line(width, (f"    {elapsed:.0f} s", ink.DIM)),
            line(width),
        ]
        room = max(height - len(lines) - 1, 0)
        last = list(self._follower.log)[-room:] if room else []
        log = [part for text in last for part in wrap(text, max(width - 4, 1)) or [""]][-room:]
        lines += [line(width, (f"  {padded(text, width - 3)}", ink.DIM)) for text in log]
        lines = page(lines, width, height - 1)
        return [*lines, line(width, (" q", ink.BAR_KEY), (" Quit", ink.BAR), fill=ink.BAR)]

    def lines(self) -> list[Strip]:
        """As they are now."""
        width, height = self.size
        return shown_in(page(self.draw(width, height), width, height), self.terminal)


class LoadingScreen(Screen[None]):
    """Waits for the first step."""

    BINDINGS = [  # noqa: RUF012 - Textual's own form
        Binding("q", "app.quit", show=False),
    ]

    def __init__(self, follower: Follower, name: str) -> None:
        super().__init__()
        self._view = LoadingView(follower, name)

    def compose(self) -> ComposeResult:
        """One view."""
        yield self._view

    def on_mount(self) -> None:
        """Move while we wait."""
        self.set_interval(0.125, self._view.refresh)
