"""Screens over the main one that are left once, however often they are told to.

A key typed right after the one that leaves still reaches the screen that was left. Textual's
`dismiss` then takes away whatever is on top: the main screen.
"""

from __future__ import annotations

from textual.await_complete import AwaitComplete
from textual.screen import ModalScreen, ScreenResultType


class LeavesOnce(ModalScreen[ScreenResultType]):
    """Only the screen on top can be left."""

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """Leave, unless that is done already."""
        if not self.is_active:
            return AwaitComplete()
        return super().dismiss(result)
