"""One attention call, as far as it must be known after the model has gone on."""

from __future__ import annotations

import torch
from msgspec import Struct
from torch import Tensor

from kvtrace.record.cache.own.steady import SteadyStep
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.flow.rows.abreast import Copied
from kvtrace.record.flow.rows.row_step import RowStep
from kvtrace.record.match import Digests, digest
from kvtrace.record.version import version


class SeenCall(Struct, frozen=True, eq=False):
    """One call, as far as it must be known after the model has gone on.

    Attributes:
        store: Its cache layer.
        step: What became of its rows.
        keys, values: Rows it wrote, [sequences, kv_heads, rows, dim].
        versions: Changes in place of its keys and values when it was seen; -1: not counted.
        digests: Of its keys and values, [sequences, seq].
    """

    store: int
    step: RowStep
    keys: Tensor
    values: Tensor
    versions: tuple[int, int]
    digests: tuple[Digests, Digests]

    def intact(self, call: AttentionCall) -> bool:
        """Whether what the call was given is still what it was when it was seen."""
        now = version(call.keys), version(call.values)
        if now == self.versions and -1 not in now:
            return True
        seq, slots = self.step.cells.shape[1], self.step.slots
        pairs = zip((call.keys, call.values), self.digests, strict=True)
        return all(
            bool((digest(rows[:, :, :seq])[:, slots] == before[:, slots]).all())
            for rows, before in pairs
        )


class Waiting(Struct, frozen=True, eq=False):
    """A call that is looked at when the forward is over, for what was copied of its rows.

    Attributes:
        key: (module, number) of the call.
        memory: Where its rows lie.
        store: Its cache layer.
        copied: What was copied.
        versions: Changes in place of its keys and values when it was seen.
    """

    key: tuple[str, int]
    memory: tuple[object, ...]
    store: int
    copied: Copied
    versions: tuple[int, int]


def seen_of(steady_step: SteadyStep, place: int) -> SeenCall:
    """One call of a step like the one before."""
    step, digests = steady_step.of(place)
    keys, values = steady_step.rows[:, place]
    store, versions = steady_step.sites.stores[place], steady_step.versions[place]
    return SeenCall(store, step, keys, values, versions, digests)


def memory_of(call: AttentionCall) -> tuple[object, ...]:
    """Where the rows of a call lie: two calls with the same share them."""
    keys, values = call.keys, call.values
    return (
        (keys.data_ptr(), keys.shape, keys.stride()),
        (values.data_ptr(), values.shape, values.stride()),
        call.queries.shape[2],
    )


def written_rows(rows: Tensor, step: RowStep) -> Tensor:
    """A copy of the rows that a step wrote."""
    rows, written = rows.detach(), step.written
    if not written.size:
        return rows[:, :, :0]
    first, count = int(written[0, 0]), written.shape[1]
    if (written == range(first, first + count)).all():
        return rows[:, :, first : first + count].clone()
    return torch.stack([rows[b][:, slots.tolist()] for b, slots in enumerate(written)])
