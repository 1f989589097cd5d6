"""The command palette: every action by its name, from the one table."""

from __future__ import annotations

from textual.await_complete import AwaitComplete
from textual.command import CommandList, CommandPalette, DiscoveryHit, Hit, Hits, Provider
from textual.content import Content

from kvtrace_tui.action import Action
from kvtrace_tui.actions import ACTIONS
from kvtrace_tui.desk.desk import Desk


class ActionPalette(CommandPalette):
    """The palette, which survives keys that come before its list has a place on the screen."""

    def _action_command_list(self, action: str) -> None:
        """Move in the list; Textual's own raises KeyError while the list has no lines."""
        if self.query_one(CommandList).size.height:
            super()._action_command_list(action)

    def dismiss(self, result: None = None) -> AwaitComplete:
        """Leave once; see `LeavesOnce`."""
        return super().dismiss(result) if self.is_active else AwaitComplete()


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
