"""What one step did: tokens in, rows written and read, tokens out, what it cost.

A step is a delta. It names the rows ("cells") every cache layer held by runs over cells, so any
step can be understood alone, without replaying those before it.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from kvtrace.trace.cost import Cost
from kvtrace.trace.mask import Mask
from kvtrace.trace.picks import Picks

NO_TOKEN = -(1 << 30)
"""Position of the first row that stands for no single token; such rows count up from it.

A row may be a summary of several tokens, or of none at all: learned, say. Padding is far above.
"""


def stands_for_none(position: int) -> bool:
    """Whether a position says that its row is that of no single token."""
    return position < NO_TOKEN >> 1


class Run(Struct, frozen=True, omit_defaults=True):
    """Consecutive cells in consecutive slots.

    A cell is one K row with its V row, all kv heads: immutable, stored once, numbered per cache
    layer in the order of writing (within a step: sequence by sequence, then row by row).

    Attributes:
        cell: First cell.
        count: Number of cells.
        slot: Where the first one stands in the array the attention was given.
        position: Logical position of the first one; negative while it is padding, from
            `NO_TOKEN` up where rows stand for no single token.
    """

    cell: int
    count: int
    slot: int
    position: int


Runs = tuple[Run, ...]


class PoolRun(Struct, frozen=True, omit_defaults=True):
    """Consecutive rows in consecutive slots of a pool that several requests share.

    Attributes:
        slot: Where the first one lies: block · slots of a block + place in it; -1: in no slot.
        count: Number of rows.
    """

    slot: int
    count: int


class CacheStep(Struct, frozen=True, omit_defaults=True):
    """What happened to a group of cache layers in one step; the same to each of them.

    Attributes:
        layers: Indices into `Meta.cache_layers`.
        first_cell: Number of the first cell written by this step.
        rows: Cells written per sequence: sequence b wrote cells
            [first_cell + b·rows, first_cell + (b+1)·rows).
        attended: Per sequence: what the attention was given, in slot order.
        kept: Per sequence: what the cache holds after the step; evicted is attended minus kept.
        length_before, length_after: Rows the cache held around the step.
        rewritten: Written rows per sequence that replaced older ones in place (quantised or
            re-rotated caches), counted in `rows`.
        pool: Per sequence, where the rows of `attended` lie in the pool of a paged cache: older
            rows where they were read, new ones where they were written. Empty: there is none.
    """

    layers: tuple[int, ...]
    first_cell: int
    rows: int
    attended: tuple[Runs, ...]
    kept: tuple[Runs, ...]
    length_before: int
    length_after: int
    rewritten: int = 0
    pool: tuple[tuple[PoolRun, ...], ...] = ()


class SiteStep(Struct, frozen=True, omit_defaults=True):
    """What a group of sites did in one step.

    Attributes:
        sites: Indices into `Meta.sites`.
        mask: What each query row could see.
        check_error: Per site: max |softmax(q·kᵀ·scale …)·v - output|, calculated from what was
            recorded; None where it was not checked.
        check_scale: Per site: max |output|, to judge the error by.
        nonfinite: Per site: NaN and Inf among q, k, v and output of this step.
        new: Query rows per sequence; None: the step's `new`. Encoder and cross-attention sites
            may have another number.
    """

    sites: tuple[int, ...]
    mask: Mask
    check_error: tuple[float | None, ...]
    check_scale: tuple[float, ...]
    nonfinite: tuple[int, ...]
    new: int | None = None


class CacheEvent(Struct, frozen=True, omit_defaults=True):
    """A change of the cache between forwards: crop, reorder, repeat, select, reset.

    Attributes:
        kind: "crop", "reorder", "repeat", "select" or "reset".
        layers: Cache layers it touched.
        lengths_before, lengths_after: Rows per touched layer.
        order: For reorder, select and repeat: the sequence each sequence took over.
    """

    kind: str
    layers: tuple[int, ...]
    lengths_before: tuple[int, ...]
    lengths_after: tuple[int, ...]
    order: tuple[int, ...] = ()


class TopLogits(Struct, frozen=True, omit_defaults=True):
    """The highest logits of one sequence after the step, highest first.

    Attributes:
        ids: Token ids.
        logits: Their logits.
        logsumexp: Of all logits, so that probability = exp(logit - logsumexp).
    """

    ids: tuple[int, ...]
    logits: tuple[float, ...]
    logsumexp: float

    @property
    def margin(self) -> float | None:
        """How far the best logit leads; None with fewer than two."""
        return self.logits[0] - self.logits[1] if len(self.logits) > 1 else None


class Packed(Struct, frozen=True, omit_defaults=True):
    """One request's part in a forward of an engine that batches requests continuously.

    Attributes:
        forward: Number of the engine's forward, counted from 0.
        request: What the engine calls the request.
        place: Which of the requests in this forward it is.
        of: How many there are.
        elapsed_ns: Wall time of the whole forward, our own time taken out.
    """

    forward: int
    request: str
    place: int
    of: int
    elapsed_ns: int = 0


class Step(Struct, frozen=True, omit_defaults=True):
    """One forward pass, or one request's part in a forward that was packed with several.

    Attributes:
        number: Counted from 0 in order of time.
        phase: "prefill" (over a prompt or a chunk of it) or "decode".
        parent: Step whose cache this one continued; None at the start of a sequence.
        tokens: Ids in, per sequence, [sequences][new].
        positions: Their positions, same shape; negative: padding.
        chosen: Token chosen from this step's logits, per sequence; None while unknown.
        top: Highest logits of the last row, per sequence; empty if none were seen.
        caches: What happened to the cache layers.
        sites: What the attention did.
        events: Changes of the cache between the step before and this one.
        cost: FLOPs and bytes.
        elapsed_ns: Wall time of the forward, our own time taken out; of a packed one the part's
            share, in proportion to its tokens.
        recorder_ns: Our own time.
        texts: Text of token ids first seen here.
        packed: Its place among the requests of a packed forward.
        picks: What modules chose for its tokens, in order; empty where nobody asked.
        likeliest: Token that each new row holds for the next, per sequence, [sequences][new]: of a
            step of several tokens that goes on with others; empty where not all rows told.
    """

    number: int
    phase: str
    parent: int | None
    tokens: tuple[tuple[int, ...], ...]
    positions: tuple[tuple[int, ...], ...]
    chosen: tuple[int | None, ...]
    top: tuple[TopLogits, ...] = ()
    caches: tuple[CacheStep, ...] = ()
    sites: tuple[SiteStep, ...] = ()
    events: tuple[CacheEvent, ...] = ()
    cost: Cost = field(default_factory=Cost)
    elapsed_ns: int = 0
    recorder_ns: int = 0
    texts: Mapping[int, str] = field(default_factory=dict)
    packed: Packed | None = None
    picks: tuple[Picks, ...] = ()
    likeliest: tuple[tuple[int, ...], ...] = ()

    @property
    def num_sequences(self) -> int:
        """Rows of the batch."""
        return len(self.tokens)

    @property
    def new(self) -> int:
        """Tokens in, per sequence."""
        return len(self.tokens[0]) if self.tokens else 0

    def new_at(self, site: int) -> int:
        """Query rows per sequence at one site."""
        group = self.site_step(site)
        return self.new if group is None or group.new is None else group.new

    @property
    def attending(self) -> tuple[int, ...]:
        """The sites that attended, group by group."""
        return tuple(site for group in self.sites for site in group.sites)

    @property
    def order(self) -> tuple[int, ...]:
        """Which of the parent's sequences each one continues; empty: nobody reordered them.

        One reordering may be told of in several events, each about other layers: only those about
        the same layer follow one another.
        """
        orders: dict[int, tuple[int, ...]] = {}
        for event in self.events:
            for layer in event.layers if event.order else ():
                order = orders.get(layer, ())
                orders[layer] = tuple(order[n] if n < len(order) else n for n in event.order)
        fitting = (order for order in orders.values() if len(order) == self.num_sequences)
        return next(fitting, ())

    def cache_step(self, cache_layer: int) -> CacheStep | None:
        """What happened to one cache layer; None if the step did not touch it."""
        return next((group for group in self.caches if cache_layer in group.layers), None)

    def site_step(self, site: int) -> SiteStep | None:
        """What one site did; None if it did not attend."""
        return next((group for group in self.sites if site in group.sites), None)
