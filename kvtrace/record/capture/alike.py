"""A decode step like the one before, looked at as a whole: nearly all are.

The same modules attended, with one new row each, to what the same layers of the same cache handed
back. That it is so is looked at layer by layer; then the rows of all layers are copied together,
and what is said of a single call or update is only made when somebody asks. Whatever differs in
anything is no such step, and `watch` reads it in full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from operator import itemgetter
from typing import Any, Generic, TypeVar, overload

import torch
from msgspec import Struct
from torch import Size, Tensor

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.attention.facts import ModuleFacts
from kvtrace.record.capture.attention.masks import MaskReader
from kvtrace.record.capture.attention.read import read
from kvtrace.record.capture.caches.tracker import CacheTracker
from kvtrace.record.capture.forward import CacheUpdate
from kvtrace.record.capture.running import Pass, RawCall, RawUpdate
from kvtrace.record.theirs import DYNAMIC_LAYER

T = TypeVar("T")

_BIASES = frozenset(("position_bias", "s_aux", "sinks"))
"""Arguments that change more of a call than its rows: such calls are read in full."""


class Later(Sequence[T], Generic[T]):
    """As many things as there are, each made when it is first asked for."""

    __slots__ = ("_made", "_make")

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        """`make` is given the place of one of them."""
        self._made: list[T | None] = [None] * count
        self._make = make

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        found = self._made[place]
        if found is None:
            found = self._made[place] = self._make(place % len(self._made))
        return found


class Pattern(Struct, frozen=True):
    """What a step must be like.

    Attributes:
        cache: Serial number of the cache.
        sequences: Rows of the batch.
        modules: That attend, in order.
        facts: Of each of them.
        paths: Where they are in the model.
        layers: The cache's own index of the layer that each of them updates, and reads.
        shapes: Of the queries, outputs, new keys and new values of all layers together.
        dtypes: Of these.
    """

    cache: int
    sequences: int
    modules: tuple[object, ...]
    facts: tuple[ModuleFacts, ...]
    paths: tuple[str, ...]
    layers: tuple[int, ...]
    shapes: tuple[Size, ...]
    dtypes: tuple[torch.dtype, ...]

    @property
    def each(self) -> tuple[Size, Size, Size, Size]:
        """[sequences, heads, new, dim] of queries, output, new keys and new values of a layer."""
        queries, output, keys, values = [shape[1:] for shape in self.shapes]
        new, heads, dim = output
        return (
            Size((self.sequences, *queries)),
            Size((self.sequences, heads, new, dim)),
            Size((self.sequences, *keys)),
            Size((self.sequences, *values)),
        )

    def batch(self, one: Pass, tracker: CacheTracker) -> Batch | None:
        """A forward that is over, as a whole; None if it is not like this.

        Args:
            one: It.
            tracker: Takes note of what the cache holds now.
        """
        updates, calls = one.updates, one.calls
        if not len(updates) == len(calls) == len(self.layers) or _mixed(one):
            return None
        cache, _, _, _, (first, _) = updates[0]
        verdicts = one.verdicts[id(cache)]
        known = tracker.met(cache) and tracker.serial(cache) == self.cache
        if not known or not all(map(_FIRST, verdicts.values())):
            return None
        raw = [call for call in calls if len(call) == 5]
        if len(raw) < len(calls) or not self._fits(cache, updates, raw, first.shape):
            return None
        found = _together(updates, raw)
        if found is None or tuple([one.shape for one in found]) != self.shapes:
            return None
        if tuple([one.dtype for one in found]) != self.dtypes:
            return None
        outs = [update[4] for update in updates]
        if self.layers == tuple(range(len(cache.layers))):
            tracker.note_grown(cache, outs)
        else:
            tracker.note(cache, dict(zip(self.layers, outs, strict=True)), verdicts)
        return Batch(self, first.shape[2], raw[0][0][4], *found, updates, raw)

    def _fits(
        self, cache: Any, updates: Sequence[RawUpdate], calls: Sequence[RawCall], seen: Size
    ) -> bool:
        """Whether each module read what its layer handed back, and still holds."""
        layers, mask, plain = cache.layers, calls[0][0][4:5], DYNAMIC_LAYER.there()
        if len(layers) <= max(self.layers):
            return False
        if mask and not isinstance(mask[0], Tensor | None):
            return False  # it is read in full: what it hides is a function
        for update, call, index, module in zip(
            updates, calls, self.layers, self.modules, strict=True
        ):
            owner, updated, _, _, (keys, values) = update
            args, named, result, _, _ = call
            layer = layers[index]
            if not (
                owner is cache
                and updated == index
                and type(layer) is plain
                and layer.keys is keys
                and layer.values is values
                and len(args) == 5
                and args[0] is module
                and args[2] is keys
                and args[3] is values
                and args[4] is mask[0]
                and keys.shape == seen
                and type(result) is tuple
                and _BIASES.isdisjoint(named)
                and named.get("sliding_window") is None
            ):
                return False
        return True


class Batch(Struct, frozen=True):
    """A step of a pattern; its rows are copies of our own.

    Attributes:
        pattern: It.
        seq: Rows attended to, in every layer.
        mask: That all modules were given, if any.
        queries: [layers · sequences, heads, 1, key_dim].
        output: [layers · sequences, 1, heads, value_dim].
        keys: New ones, [layers · sequences, kv_heads, 1, key_dim].
        values: New ones, [layers · sequences, kv_heads, 1, value_dim].
    """

    pattern: Pattern
    seq: int
    mask: Tensor | None
    queries: Tensor
    output: Tensor
    keys: Tensor
    values: Tensor
    _updates: Sequence[RawUpdate]
    _calls: Sequence[RawCall]

    @property
    def before(self) -> tuple[int, ...]:
        """Updates before each call."""
        return tuple([call[4] for call in self._calls])

    @property
    def held_bytes(self) -> int:
        """Memory that the layers hold."""
        return (self.keys.nbytes + self.values.nbytes) * self.seq

    @property
    def attended(self) -> tuple[tuple[str, ...], int]:
        """Paths of the modules that attended, and rows that each attended to."""
        return self.pattern.paths, self.seq

    def calls(self) -> Sequence[AttentionCall]:
        """The calls, read when they are asked for."""
        masks, facts = MaskReader(), self.pattern.facts

        def make(place: int) -> AttentionCall:
            call = read(facts[place], self._calls[place], 0, masks)
            if call is None:
                raise TypeError("a call like one that was read can't be read")
            return call

        return Later(len(self._calls), make)

    def updates(self) -> Sequence[CacheUpdate]:
        """The updates, made when they are asked for."""
        cache, seq, name = self.pattern.cache, self.seq, "DynamicLayer"

        def make(place: int) -> CacheUpdate:
            _, index, new_keys, new_values, out = self._updates[place]
            new, limits, states = (new_keys, new_values), (None, None), (True, True, True)
            return CacheUpdate(cache, index, "self", name, *new, *out, *out, seq, *limits, *states)

        return Later(len(self._updates), make)


_FIRST = itemgetter(0)
_NO_GRAD = nullcontext()
"""Where nobody keeps gradients anyway: torch's own costs as much as all the copies."""


def _together(
    updates: Sequence[RawUpdate], calls: Sequence[RawCall]
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Queries, outputs, new keys and new values of all layers; None where they differ in shape."""
    try:
        with torch.no_grad() if torch.is_grad_enabled() else _NO_GRAD:
            return (
                torch.cat([call[0][1] for call in calls]),
                torch.cat([call[2][0] for call in calls]),
                torch.cat([update[2] for update in updates]),
                torch.cat([update[3] for update in updates]),
            )
    except (RuntimeError, TypeError, IndexError):
        return None


def pattern_of(
    one: Pass,
    updates: Sequence[CacheUpdate],
    calls: Sequence[AttentionCall],
    facts: Mapping[int, ModuleFacts],
) -> Pattern | None:
    """What the step after this forward will be like if it is like this one; None: it repeats none.

    Args:
        one: The forward, as it was seen.
        updates: Of it.
        calls: Of it.
        facts: By the id of the module.
    """
    if not len(updates) == len(calls) == len(one.calls) or not updates:
        return None
    if updates[0].new_keys.shape[2] != 1 or _mixed(one) or not all(map(_plain, updates, calls)):
        return None
    raw = [call for call in one.calls if len(call) == 5 and len(call[0]) == 5]
    sequences = calls[0].queries.shape[0]
    devices = {part.device for call in calls for part in (call.queries, call.keys, call.output)}
    alike = len(raw) == len(calls) and len(devices) == len({each.cache for each in updates}) == 1
    found = _together(one.updates, raw) if alike else None
    if found is None or any(part.shape[0] != len(calls) * sequences for part in found):
        return None
    dtypes = tuple([part.dtype for part in found])
    modules = tuple([call[0][0] for call in raw])
    known = tuple([facts[id(module)] for module in modules])
    pattern = Pattern(
        updates[0].cache,
        sequences,
        modules,
        known,
        tuple([each.path for each in known]),
        tuple([update.layer for update in updates]),
        tuple([part.shape for part in found]),
        dtypes,
    )
    cache, first = one.updates[0][0], updates[0].keys.shape
    four = found[1].dim() == 4 and dtypes[0] == dtypes[1] and dtypes[2] == dtypes[3]
    return pattern if four and pattern._fits(cache, one.updates, raw, first) else None


def _mixed(one: Pass) -> bool:
    """Whether more went on in a forward than attention that asked, in one text or batch."""
    return bool(one.recurrent or one.paged) or one.flow is not None or one.packed is not None


def _plain(update: CacheUpdate, call: AttentionCall) -> bool:
    """Whether a call reads one row more than its layer held, and nothing is special about it."""
    return (
        (update.class_name, update.part, call.kind) == ("DynamicLayer", "self", "self")
        and update.known
        and update.held_keys is update.keys is call.keys
        and update.held_values is update.values is call.values
        and update.new_keys.dtype == update.keys.dtype
        and update.new_values.dtype == update.values.dtype
        and call.queries.shape[2] == 1
        and call.call == 0
        and call.window is None
        and call.bias is None
    )
