"""From a packed forward to one forward for each request in it.

The parts are views of what the model used. A request's part looks like a forward of that request
alone, over a cache of its own that grows, or slides: what it attended to is what the engine handed
back for it, and its mask is its piece of the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.clock import Took
from kvtrace.record.capture.forward import CacheUpdate, Forward
from kvtrace.record.capture.replaced.choices import Choice
from kvtrace.record.cost.measured import Measured
from kvtrace.record.paged.batch import Batch, Group
from kvtrace.record.paged.engine import PagedUpdate
from kvtrace.record.paged.places import Part, Placed, Slots


class Packed(Struct, frozen=True):
    """A packed forward, and what is known of the pool it used.

    Attributes:
        batch: Its arguments.
        serials: Of each request: the number of the cache it stands for.
        pool: Number of the pool.
        number: Number of the packed forward.
        copied: Group to slots copied since the last forward.
        foreign: Groups that somebody else has written to.
        updates: Keys handed back, by id, to the update.
    """

    batch: Batch
    serials: tuple[int, ...]
    pool: int
    number: int
    copied: Mapping[int, tuple[tuple[Slots, Slots], ...]]
    foreign: frozenset[int]
    updates: Mapping[int, PagedUpdate]


class _Span(Struct, frozen=True):
    """The rows of one request: of queries, and of keys in one group."""

    place: int
    start: int
    end: int
    first: int
    last: int

    def queries(self, tensor: Tensor) -> Tensor:
        return tensor[:, :, self.start : self.end]

    def keys(self, tensor: Tensor) -> Tensor:
        return tensor[:, :, self.first : self.last]


def parts(forward: Forward, packed: Packed, number: Callable[[], int]) -> list[Forward]:
    """The forwards of its requests, in their order.

    Args:
        forward: The packed one, its calls given all rows attended to.
        packed: What is known of it.
        number: Gives each of them its number.
    """
    whole = forward.took.ns()
    shares = _shares(whole, packed.batch.starts)
    own = _shares(forward.own_ns, packed.batch.starts)
    masks: dict[tuple[int, int, int], Tensor] = {}
    found = []
    for place, share in enumerate(shares):
        calls, updates = _taken(forward.calls, packed, place, masks)
        start, end = packed.batch.starts[place : place + 2]
        request = packed.batch.requests[place]
        found.append(
            replace(
                forward,
                number=number(),
                arguments=_arguments(forward, packed.batch, start, end),
                tokens=torch.tensor([packed.batch.tokens[start:end]]),
                new=end - start,
                calls=tuple(calls),
                updates=tuple(updates),
                updates_before=tuple(range(1, len(calls) + 1)),
                logits=_logits(forward, packed.batch, place),
                result=None,
                took=Took(share, 0),
                own_ns=own[place],
                choices=tuple(_chosen(forward.choices, forward.new, start, end)),
                part_of=Part(
                    packed.number,
                    request.name,
                    place,
                    len(shares),
                    request.prompt,
                    whole,
                    _measured(forward, len(shares)) if place == 0 else None,
                ),
            )
        )
    return found


def _measured(forward: Forward, requests: int) -> Measured:
    """Its sizes as those of one sequence, or of many with a token each: its products are alike."""
    past = max(call.keys.shape[2] for call in forward.calls) - forward.new
    logits = None if forward.logits is None else tuple(forward.logits.shape)
    sequences, new = (requests, 1) if forward.new == requests else (1, forward.new)
    return Measured(forward.calls, sequences, new, max(0, past), logits)


def _chosen(choices: Sequence[Choice], new: int, start: int, end: int) -> Iterator[Choice]:
    """What was selected for the tokens of one request."""
    for one in choices:
        if one.indices.dim() > 1 and one.indices.shape[-2] == new:
            yield replace(one, indices=one.indices[..., start:end, :])


def _shares(whole: int, starts: Sequence[int]) -> list[int]:
    """Of a number, in proportion to the tokens of each request; the sum is the whole."""
    marks = [whole * start // starts[-1] for start in starts]
    return [after - before for before, after in pairwise(marks)]


def _arguments(forward: Forward, batch: Batch, start: int, end: int) -> dict[str, object]:
    """What a forward of this request alone would be called with."""
    ids = forward.argument("input_ids")
    out: dict[str, object] = {"use_cache": True}
    if ids is not None:
        out["input_ids"] = ids.reshape(1, -1)[:, start:end]
    places = batch.positions[start:end]
    if places != tuple(range(places[0], places[0] + end - start)):
        out["position_ids"] = torch.tensor([places])
    return out


def _logits(forward: Forward, batch: Batch, place: int) -> Tensor | None:
    """The logits of a request, [1, rows, vocab]; None where none were made for it."""
    request, logits = batch.requests[place], forward.logits
    if logits is None or not request.chooses:
        return None
    if "logits_to_keep" not in forward.arguments:
        return logits[:, batch.starts[place] : batch.starts[place + 1]]
    row = sum(one.chooses for one in batch.requests[:place])
    return logits[:, row : row + 1] if row < logits.shape[1] else None


def _taken(
    calls: Sequence[AttentionCall],
    packed: Packed,
    place: int,
    masks: dict[tuple[int, int, int], Tensor],
) -> tuple[list[AttentionCall], list[CacheUpdate]]:
    """The calls of one request, and the updates that gave them their rows."""
    taken, updates = [], []
    start, end = packed.batch.starts[place : place + 2]
    for call in calls:
        update = packed.updates[id(call.keys)]
        group = packed.batch.groups[update.layer]
        span = _Span(place, start, end, *group.keys[place : place + 2])
        keys, values = span.keys(update.keys), span.keys(update.values)
        visible = _piece(call.visible, span, masks)
        taken.append(
            replace(
                call,
                queries=span.queries(call.queries),
                keys=keys,
                values=values,
                output=span.queries(call.output),
                # a kernel without a mask is told where each request begins and ends
                causal=visible is None and end - start > 1,
                visible=visible,
                bias=_piece(call.bias, span, masks),
            )
        )
        updates.append(_update(packed, span, update, group, (keys, values)))
    return taken, updates


def _piece(
    table: Tensor | None, span: _Span, masks: dict[tuple[int, int, int], Tensor]
) -> Tensor | None:
    """A request's piece of a mask or bias, [1, 1, new, seq]; the same object for all layers."""
    if table is None:
        return None
    key = (id(table), span.place, span.first)
    found = masks.get(key)
    if found is None:
        found = masks[key] = table[..., span.start : span.end, span.first : span.last]
    return found


def _update(
    packed: Packed, span: _Span, update: PagedUpdate, group: Group, rows: tuple[Tensor, Tensor]
) -> CacheUpdate:
    """A request's part of an update, as one of a cache of its own."""
    keys, values = rows
    batch = packed.batch
    new = span.end - span.start
    length = batch.positions[span.start] + new
    held = min(keys.shape[2], length if group.window is None else group.window)
    placed = Placed(
        packed.pool,
        group.number,
        packed.number,
        group.old(span.place, new),
        group.writes[span.start : span.end],
        group.capacity,
        group.block,
        packed.copied.get(group.number, ()) if span.place == 0 else (),
        group.number in packed.foreign and span.place == 0,
    )
    return CacheUpdate(
        packed.serials[span.place],
        update.layer,
        "self",
        "PagedLayer" if group.window is None else "PagedSlidingLayer",
        span.queries(update.new_keys),
        span.queries(update.new_values),
        keys,
        values,
        keys[:, :, keys.shape[2] - held :],
        values[:, :, values.shape[2] - held :],
        length,
        None,
        group.window,
        True,
        True,
        True,
        placed=placed,
    )
