"""Heads that a loop, or sibling modules, calculate one at a time: one attention call again.

Calls with one head, and those that may be of one text, wait until something uses an output. Heads
of a loop are all there before the first output is used; layers are not, each uses the one before.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.flow.calls.prove import FlowCall
from kvtrace.record.flow.marks.names import COPIES
from kvtrace.record.flow.marks.views import VIEWS

COLLECTS = frozenset(("__setitem__", "__get__", "size", "dim", *COPIES, *VIEWS))
"""What a loop does with the output of a head before the next one."""


class Waiting(Struct, frozen=True):
    """A call with one head, or of one text, and who made it.

    Attributes:
        call: The call.
        path: Module it belongs to.
        kind: Class of the module, None where no module runs.
    """

    call: FlowCall
    path: str
    kind: type | None


@dataclass(slots=True)
class Loop:
    """Calls with one head, or of one text, that may belong together, in order."""

    waiting: list[Waiting] = field(default_factory=list)
    _outputs: dict[int, weakref.ref[Tensor]] = field(default_factory=dict)

    def fits(self, one: Waiting) -> bool:
        """Whether a call may be the next head of those that wait."""
        if not self.waiting:
            return True
        last = self.waiting[-1]
        same = last.call.place == one.call.place and last.kind is one.kind
        if last.path != one.path:
            same = same and _siblings(last.path, one.path)
        return same and _shapes(last.call) == _shapes(one.call)

    def add(self, one: Waiting, output: Tensor) -> None:
        """Wait for more; `output` is the tensor the model goes on with."""
        self.waiting.append(one)
        self.carry(output)

    def carry(self, output: Tensor) -> None:
        """Remember a tensor that holds the output of a head."""
        self._outputs[id(output)] = weakref.ref(output)

    def uses(self, args: object) -> bool:
        """Whether the output of a head is among the arguments."""
        return isinstance(args, tuple | list) and any(self._holds(value) for value in args)

    def _holds(self, value: object) -> bool:
        if isinstance(value, Tensor):
            held = self._outputs.get(id(value))
            return held is not None and held() is value
        return isinstance(value, tuple | list) and any(self._holds(x) for x in value)

    def take(self) -> list[Waiting]:
        """What waits; nothing waits after."""
        waiting, self.waiting = self.waiting, []
        self._outputs = {}
        return waiting


def _siblings(one: str, other: str) -> bool:
    """heads.0 and heads.1."""
    (first, _, a), (second, _, b) = one.rpartition("."), other.rpartition(".")
    return first == second and a.isdigit() and b.isdigit()


def _shapes(call: FlowCall) -> tuple[object, ...]:
    rows = (call.queries.shape, call.keys.shape, call.values.shape)
    return (*rows, call.scale, call.softcap, call.sinks is None, call.assumed)


def together(waiting: list[Waiting], path: str) -> Waiting:
    """Heads side by side; `path` is the module around them.

    Visibility and bias are given per head where they differ.
    """
    first = waiting[0]
    if len(waiting) == 1:
        return first
    calls = [one.call for one in waiting]
    merged = replace(
        first.call,
        queries=torch.cat([call.queries for call in calls], 1),
        keys=torch.cat([call.keys for call in calls], 1),
        values=torch.cat([call.values for call in calls], 1),
        output=torch.cat([call.output for call in calls], 1),
        visible=_per_head([call.visible for call in calls], calls[0], fill=True),
        bias=_per_head([call.bias for call in calls], calls[0], fill=0.0),
        sinks=None if first.call.sinks is None else _cat([call.sinks for call in calls]),
        weights=None,
    )
    same = all(one.path == first.path for one in waiting)
    return Waiting(merged, first.path if same else path, first.kind)


def _cat(parts: list[Tensor | None]) -> Tensor:
    return torch.cat([part for part in parts if part is not None])


def _per_head(parts: list[Tensor | None], call: FlowCall, fill: bool | float) -> Tensor | None:
    """Masks or biases of single heads as one, without the head axis where all agree."""
    given = [part for part in parts if part is not None]
    if not given:
        return None
    if len(given) == len(parts) and all(torch.equal(part, given[0]) for part in given):
        return given[0]
    shape = (call.queries.shape[0], 1, call.queries.shape[2], call.keys.shape[2])
    whole = torch.full(shape, fill, dtype=given[0].dtype, device=given[0].device)
    return torch.cat([whole if part is None else part.expand(shape) for part in parts], 1)
