"""Steps like the one before that are kept back, and worked out together: one operation for all.

What is kept are copies of our own. What is worked out is what every step alone would say, to the
last digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import torch
from msgspec import Struct
from torch import Size, Tensor

from kvtrace.files import Stacked, StepRows
from kvtrace.record.cache.own.steady import SteadyStep
from kvtrace.record.cache.stores import dtype_name
from kvtrace.record.capture.alike import Batch
from kvtrace.record.capture.forward import Forward
from kvtrace.record.steps.attended import Attended, Checked, mask_of
from kvtrace.record.steps.copies import fetch
from kvtrace.record.steps.masks import Compact, Compactor
from kvtrace.record.steps.rows import Copied, Stack, as_stored, nonfinite
from kvtrace.record.steps.top import TopReader
from kvtrace.trace import SiteStep, TopLogits
from kvtrace.trace.dtypes import Array

_KINDS = "qokv"


Sizes = tuple[Size, Size, Size, Size]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


class Parts(NamedTuple):
    """What makes a step one of many that are alike, see `WaitingStep`."""

    pattern: object
    each: Sizes
    parts: Four
    compact: Compact


class WaitingStep(Struct, frozen=True):
    """What a step needs to be worked out later.

    Attributes:
        pattern: What it is like.
        each: [sequences, heads, new, dim] of the parts, of one site or cache layer.
        parts: Queries, output, new keys and new values of all of them.
        compact: Mask of all its sites.
        logits: After each sequence, [sequences, vocab], a copy; None without any.
        checked: Place of a call to the outcome of its self-check.
        sites: Of the calls, in order.
        stores: Cache layers of the updates, in order.
        reads: Cache layer of each call.
    """

    pattern: object
    each: Sizes
    parts: Four
    compact: Compact
    logits: Tensor | None
    checked: Mapping[int, Checked]
    sites: list[int]
    stores: tuple[int, ...]
    reads: list[int]

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        logits = 0 if self.logits is None else self.logits.nbytes
        return logits + sum([part.nbytes for part in self.parts])

    def goes_with(self, other: WaitingStep) -> bool:
        """Whether both are worked out together."""
        mine, theirs = self.logits, other.logits
        shapes = [None if one is None else (one.shape, one.dtype) for one in (mine, theirs)]
        alike = self.pattern is other.pattern and self.sites is other.sites
        alike = alike and self.each == other.each
        return alike and self.stores == other.stores and shapes[0] == shapes[1]


def parts_of(forward: Forward, batch: Batch, compactor: Compactor) -> Parts:
    """What is kept of a step in which every module asked for its attention."""
    tensors = batch.queries, batch.output, batch.keys, batch.values
    return Parts(batch.pattern, batch.pattern.each, tensors, mask_of(forward, batch, compactor))


@torch.no_grad()
def parts_of_own(
    forward: Forward, steady_step: SteadyStep, compactor: Compactor, dtypes: Set[torch.dtype]
) -> Parts | None:
    """The same of a cache of the model's own; None where its sites differ in more than their rows.

    Args:
        forward: It.
        steady_step: What its calls did.
        compactor: For its masks.
        dtypes: In which the rows of its sites are stored.
    """
    calls, rows = forward.calls, steady_step.rows
    seq = int(steady_step.step.cells.shape[1])
    queries, output = [call.queries for call in calls], [call.output for call in calls]
    masks = [compactor.compact(call, seq) for call in calls]
    alike = (
        all(mask is masks[0] for mask in masks)
        and all(one.shape == queries[0].shape for one in queries)
        and all(one.shape == output[0].shape for one in output)
        and {one.dtype for one in (*queries, *output)} == dtypes
        and len(dtypes) == 1
    )
    if not alike or queries[0].shape[2] != forward.new:
        return None
    each = queries[0].shape, output[0].shape, rows.shape[2:], rows.shape[2:]
    tensors = torch.cat(queries), torch.cat(output), rows[0].flatten(0, 1), rows[1].flatten(0, 1)
    return Parts(steady_step.sites, each, tensors, masks[0])


class Worked(Struct, frozen=True):
    """What was worked out of one step."""

    top: tuple[TopLogits, ...]
    sites: tuple[SiteStep, ...]
    rows: StepRows


@torch.no_grad()
def work_out(kept: Sequence[WaitingStep], reader: TopReader) -> list[Worked]:
    """Steps that go together, in order."""
    first = kept[0]
    indices = (tuple(first.sites),) * 2 + (first.stores,) * 2
    wholes, names, finite = _rows(kept, [len(one) for one in indices])
    tops = _tops(kept, reader)
    ascending = all(tuple(sorted(one)) == one for one in indices)
    if not (finite and ascending):
        return [
            _singly(one, top, [whole[step] for whole in wholes], names, indices)
            for step, (one, top) in enumerate(zip(kept, tops, strict=True))
        ]
    number, calls = wholes[1].shape[:2]
    # of all steps as if they were sites of one
    flat = wholes[1].reshape(number * calls, *wholes[1].shape[2:])
    largest = Stack("o", tuple(range(number * calls)), flat, names[1]).largest()
    none, zeros, sites = (None,) * calls, (0,) * calls, indices[0]
    out = []
    for step, (one, top) in enumerate(zip(kept, tops, strict=True)):
        queries, output, keys, values = [
            Stacked(index, whole[step]) for index, whole in zip(indices, wholes, strict=True)
        ]
        full = {} if one.compact.full is None else dict.fromkeys(sites, one.compact.full)
        bias = {} if one.compact.bias is None else dict.fromkeys(sites, one.compact.bias)
        errors: tuple[float | None, ...] = none
        if one.checked:
            found = [one.checked.get(place) for place in range(calls)]
            errors = tuple([None if pair is None else pair[0] for pair in found])
        scale = tuple(largest[step * calls : (step + 1) * calls])
        attended = SiteStep(sites, one.compact.mask, errors, scale, zeros)
        rows = StepRows(queries, output, keys, values, full, bias)
        out.append(Worked(top, (attended,), rows))
    return out


def _rows(
    kept: Sequence[WaitingStep], counts: Sequence[int]
) -> tuple[list[Array], list[str], bool]:
    """Queries, output, keys and values of all steps, [steps, indices, sequences, heads, 1, dim]."""
    each, dtypes = kept[0].each, [part.dtype for part in kept[0].parts]
    wholes: dict[int, Array] = {}
    finite = True
    for dtype in dict.fromkeys(dtypes):
        kinds = [kind for kind, other in enumerate(dtypes) if other == dtype]
        flight = fetch([one.parts[kind] for kind in kinds for one in kept])
        array, start = as_stored(flight.land()), 0
        finite = finite and not nonfinite(array, dtype_name(dtype)).any()
        for kind in kinds:
            end = start + len(kept) * kept[0].parts[kind].numel()
            wholes[kind] = array[start:end].reshape(len(kept), counts[kind], *each[kind])
            start = end
    names = [dtype_name(dtype) for dtype in dtypes]
    return [wholes[kind] for kind in range(len(dtypes))], names, finite


def _tops(kept: Sequence[WaitingStep], reader: TopReader) -> list[tuple[TopLogits, ...]]:
    """The highest logits of each step."""
    logits = [one.logits for one in kept if one.logits is not None]
    if len(logits) < len(kept):
        return [()] * len(kept)
    found = reader.of((logits[0] if len(logits) == 1 else torch.cat(logits)).float())
    each = len(logits[0])
    return [tuple(found[start : start + each]) for start in range(0, len(found), each)]


def _singly(
    one: WaitingStep,
    top: tuple[TopLogits, ...],
    rows: Sequence[Array],
    names: Sequence[str],
    indices: Sequence[tuple[int, ...]],
) -> Worked:
    """One step, its rows looked at by themselves."""
    stacks = tuple(map(Stack, _KINDS, indices, rows, names))
    copied = Copied(stacks, finite=False)
    calls = len(one.sites)
    attended = Attended(one.sites, [one.compact] * calls, [1] * calls)
    sites = attended.site_steps(copied, one.checked, one.reads, 1)
    return Worked(top, sites, attended.step_rows(copied))
