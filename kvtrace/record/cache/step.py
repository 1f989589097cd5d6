"""What one forward did to the caches, and what its attention was given of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from kvtrace.record.cache import books
from kvtrace.record.cache.books import Entry
from kvtrace.record.cache.own.steady import SteadyStep
from kvtrace.record.cache.reads import Read
from kvtrace.record.flow.rows.slots import Numbers
from kvtrace.trace import CacheEvent, CacheStep


@dataclass(slots=True)
class LedgerStep:
    """What the ledger says of one forward.

    Attributes:
        groups: Per group of cache layers.
        events: Changes since the forward before.
        reads: Per attention call: where its rows came from.
        stores: Per attention call: the cache layer it reads.
        rows: Cache layer to the keys and values written, [sequences, kv_heads, rows, dim].
        seq: Cache layer to the rows its attention was given; static buffers hold more.
        caches: Serial numbers of the caches that were updated or read.
        slots: Cache layer to the slots of a buffer that hold rows, where not all do.
        parent: Step whose rows this one goes on with, as the rows tell it.
        donor: Step whose rows a request goes on with that had none of its own.
        copied: Caches with whose rows another one, met in this step, goes on.
        grown: Tokens more than those of the step before, which were computed again.
        own_bytes: Memory of caches of the model's own.
        routine: As the step before in all but the number of rows.
        steady_step: What its calls did, where their rows went on in a cache of the model's own
            as in the step before.
    """

    groups: tuple[CacheStep, ...] = ()
    events: tuple[CacheEvent, ...] = ()
    reads: list[Read] = field(default_factory=list)
    stores: list[int] = field(default_factory=list)
    rows: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    seq: dict[int, int] = field(default_factory=dict)
    caches: set[int] = field(default_factory=set)
    slots: dict[int, Numbers] = field(default_factory=dict)
    parent: int | None = None
    donor: int | None = None
    copied: frozenset[int] = frozenset()
    grown: int = 0
    own_bytes: int = 0
    routine: bool = False
    steady_step: SteadyStep | None = None


def step_of_steady(entry: Entry, steady_step: SteadyStep, own_bytes: int) -> LedgerStep:
    """The step of a cache of the model's own whose layers all went on as in the step before.

    Args:
        entry: What happened to each layer.
        steady_step: The calls.
        own_bytes: Memory of the caches.
    """
    stores, rows = steady_step.sites.stores, steady_step.rows
    seq = int(steady_step.step.cells.shape[1])
    return LedgerStep(
        groups=(books.cache_step(stores, entry),),
        reads=[Read("cache")] * len(stores),
        stores=list(stores),
        rows=dict(zip(stores, zip(rows[0].unbind(), rows[1].unbind(), strict=True), strict=True)),
        seq=dict.fromkeys(stores, seq),
        parent=steady_step.before[0].number,
        own_bytes=own_bytes,
        routine=True,
        steady_step=steady_step,
    )
