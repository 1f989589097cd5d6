"""Modules that take turns at one place: one sees a prompt, the one beside it the cache after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvtrace.record.flow.calls.prove import FlowCall
from kvtrace.record.modes import unseen_by_modes


@dataclass(slots=True)
class Relief:
    """Which module goes on with the text of another one.

    Two modules beside each other are one place of attention if the second first attends in a later
    pass, in which the first does not, to as many rows as the first left and those that came in.
    What attends to another text does so in each pass, beside what attends to its own.
    """

    _rows: dict[str, int] = field(default_factory=dict)
    _place: dict[str, str] = field(default_factory=dict)

    def place(self, path: str, call: FlowCall, here: Mapping[str, int]) -> str:
        """The module whose place a call is at: mostly the one that made it.

        Args:
            path: Of the module that attends.
            call: What it did.
            here: How often modules have attended in this pass.
        """
        if path not in self._place:
            self._place[path] = self._relieved(path, call, here) or path
        place = self._place[path]
        # who goes on with its text itself needs no relief
        prompt = call.queries.shape[2] > 1 or call.keys.shape[2] == 1
        self._rows[place] = _attended(call) if prompt else 0
        return place

    @property
    def seen(self) -> set[str]:
        """Modules whose calls were told of as those of another one."""
        return {path for path, place in self._place.items() if path != place}

    def _relieved(self, path: str, call: FlowCall, here: Mapping[str, int]) -> str | None:
        """The one module beside this one that it goes on for, if it does."""
        around, _, name = path.rpartition(".")
        if name.isdecimal():  # of a list, in which each is a layer
            return None
        beside = [one for one in self._rows if one.rpartition(".")[0] == around]
        if len(beside) != 1 or here[beside[0]] or beside[0].rpartition(".")[2].isdecimal():
            return None
        before, new = self._rows[beside[0]], call.queries.shape[2]
        return beside[0] if before and _attended(call) == before + new else None


def _attended(call: FlowCall) -> int:
    """How many rows a call attended to, of all that a buffer has room for."""
    if call.visible is None:
        return call.keys.shape[2]
    with unseen_by_modes():
        return int(call.visible.flatten(0, -2).any(0).sum())
