"""Which modules of a model of two sides attend to the other text, where no name says so."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from msgspec import Struct
from torch import Tensor

from kvtrace.record.flow.calls.prove import FlowCall
from kvtrace.record.flow.modes.modules import Frame
from kvtrace.record.nested import tensors_in

_DEEPEST = 3
"""Collections within one another: keys and values, of layers, of a cache."""


class Place(Struct, frozen=True):
    """Where a call is made: a module attends to one text, then to the other, or one of them does.

    Attributes:
        path: Of the module, or the name of a function.
        number: Calls of it before this one, in the same step.
        frame: The module; None where none runs.
    """

    path: str
    number: int
    frame: Frame | None

    @property
    def rows(self) -> list[Tensor]:
        """Rows of texts that the module was given."""
        return [] if self.frame is None else [x for x in self.frame.tensors() if _is_rows(x)]


@dataclass(slots=True)
class Crossing:
    """What is known of a model's modules.

    A call tells by the rows that its module was given, unless it sees those of the call before, if
    any, and one more for each query: its own text, kept by whoever calls. Ready keys and values
    tell in a module's first call only, while its own text has no rows but those of the tokens that
    came in.
    """

    _found: set[tuple[str, int]] = field(default_factory=set)
    _met: dict[tuple[str, int], int] = field(default_factory=dict)
    _begun: dict[str, bool] = field(default_factory=dict)
    _in_turn: set[str] = field(default_factory=set)
    _heard: int = 0

    def encoded(self, call: FlowCall) -> None:
        """An encoder attended to its own text."""
        self._heard = call.keys.shape[2]

    def attended(self, place: Place, call: FlowCall) -> None:
        """A call was made that no name gives to one side."""
        key = place.path, place.number
        first, seen = key not in self._met, _seen(call)
        own = seen == self._met.get(key, 0) + call.queries.shape[2]
        self._met[key] = seen
        handed = first and self._is_handed(_layer_of(place.path), call)
        if (_gave_both(place, call) and not own) or (
            handed and not self._is_of_its_own(place, call)
        ):
            self._found.add(key)

    def is_only_named(self, path: str, call: FlowCall) -> bool:
        """Whether a module that a name calls crossing attends to its own text, one row a query."""
        if path not in self._in_turn and _is_in_turn(call):
            self._in_turn.add(path)
        return path in self._in_turn

    def is_found(self, path: str, number: int) -> bool:
        """Whether a call of a module, or of one inside of it, attends to another text."""
        inside = f"{path}."
        return (path, number) in self._found or any(
            one.startswith(inside) for one, _ in self._found
        )

    def _is_of_its_own(self, place: Place, call: FlowCall) -> bool:
        """Whether keys and values were made of the very rows that queries were made of.

        A module that is given these alone may hold ready ones, made of an encoder's rows.
        """
        if call.queries.shape[2] != call.keys.shape[2]:
            return False
        given = place.rows
        if not given or any(not torch.equal(x, given[0]) for x in given[1:]):
            return False
        return len(given) > 1 or not (self._heard or _has_ready(place.frame, call))

    def _is_handed(self, layer: str, call: FlowCall) -> bool:
        """Whether the rows of a module's first call can't be those of its tokens."""
        new, seq = call.queries.shape[2], call.keys.shape[2]
        ordered = is_ordered(call)
        if ordered or (seq > new and _is_buffer(call)):
            self._begun[layer] = self._begun.get(layer, False) or ordered
            return False
        if seq == new:
            # where the text of this layer is in order, what sees all of as many rows is not
            if new > 1 and self._begun.get(layer) and self._heard in (0, seq):
                return True
            self._begun.setdefault(layer, False)
            return False
        return seq == self._heard or layer in self._begun


def _gave_both(place: Place, call: FlowCall) -> bool:
    """Whether keys come from rows that a module was given beside those of its queries."""
    new, seq = call.queries.shape[2], call.keys.shape[2]
    rows = [x.shape for x in place.rows]
    # along one axis, for along the other stand sequences
    return seq != new and any({seq, new} <= {shape[axis] for shape in rows} for axis in (0, 1))


def _has_ready(frame: Frame | None, call: FlowCall) -> bool:
    """Whether a module was given, or keeps, a tensor of the size of keys or values."""
    if frame is None:
        return False
    modules = () if frame.module is None else frame.module.modules()
    kept = [x for one in modules for x in (*vars(one).values(), *one.buffers(recurse=False))]
    given, named = frame.arguments
    said = [x for x in (*given, *named.values()) if not (isinstance(x, Tensor) and _is_rows(x))]
    sizes = {call.keys.numel(), call.values.numel()}
    return any(x.numel() in sizes for x in tensors_in([*kept, *said], _DEEPEST))


def _is_rows(given: Tensor) -> bool:
    """Whether a tensor may be a text's rows, [batch, seq, width]."""
    return given.dim() == 3 and given.dtype.is_floating_point


def _layer_of(path: str) -> str:
    """Where the modules of one layer are: up to its number, else what is around the module."""
    found = re.match(r".*?\.\d+(?=\.)", f".{path}")
    return found[0][1:] if found else path.rpartition(".")[0]


def is_ordered(call: FlowCall) -> bool:
    """Whether queries see one row after the other, as tokens see those before them."""
    if call.visible is None:
        return False
    return bool((call.visible != call.visible[..., :1, :]).any())


def _is_in_turn(call: FlowCall) -> bool:
    """Whether each query sees one row more than the one before, as no other text is seen."""
    if call.visible is None or call.queries.shape[2] < 2:
        return False
    seen = call.visible.expand(*call.visible.shape[:-2], call.queries.shape[2], -1)
    places = torch.arange(1, seen.shape[-1] + 1, device=seen.device)
    newest = (seen * places).amax(-1)
    return bool((newest.diff(dim=-1) == 1).flatten(1).all(-1).any())


def _seen(call: FlowCall) -> int:
    """Keys that a query sees, in the sequence in which it sees most."""
    seq = call.keys.shape[2]
    if call.visible is None:
        return seq
    return int(call.visible.expand(*call.visible.shape[:-1], seq).sum(-1).max())


def _is_buffer(call: FlowCall) -> bool:
    """Whether keys may be those of the tokens in a larger buffer: more are hidden, or blank."""
    new, seq = call.queries.shape[2], call.keys.shape[2]
    if call.visible is not None:
        seen = call.visible.expand(*call.visible.shape[:-1], seq)
        if int(seen.sum(-1).max()) <= new:
            return True
    filled = call.keys.detach().ne(0).any(-1).any(1)
    return int(filled.sum(-1).max()) <= new
