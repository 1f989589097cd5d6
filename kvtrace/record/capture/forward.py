"""One watched forward pass of a model, as tensors. What the rest of `record` works from.

Tensors are references: they are what the model has just used, not copies. Whoever keeps one past
the callback keeps the model's memory; whoever reads one later may read what was overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct, field
from torch import Tensor, nn

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.clock import Took
from kvtrace.record.capture.replaced.choices import Choice
from kvtrace.record.paged.places import Part, Placed

if TYPE_CHECKING:
    from kvtrace.record.capture.alike import Batch, Pattern


class CacheUpdate(NamedTuple):
    """One `update` of one layer of a cache. A tuple, because a step has many.

    Attributes:
        cache: Serial number of the cache object, counted from 0 as they are met.
        layer: The cache's own layer index.
        part: "self" or "cross" (the second half of an encoder-decoder cache).
        class_name: Class of the cache layer, or transformers' own that it is made from.
        new_keys: Keys handed in, [sequences, kv_heads, new, key_dim].
        new_values: Values handed in, [sequences, kv_heads, new, value_dim].
        keys: Keys handed back, [sequences, kv_heads, seq, key_dim].
        values: Values handed back.
        held_keys, held_values: What the layer holds afterwards; None where it keeps no such tensor.
        length: Rows the layer says it has seen, after the update.
        capacity: Slots allocated up front; None where it grows.
        window: Rows a sliding layer keeps in view; None if all.
        continuous: What the layer held was untouched since the last update or change seen.
        settled: What the layer holds now is what it kept of these rows; else somebody edited it
            before the forward was over.
        known: Cache and layer are of classes whose behaviour is known; else rows are compared.
        earlier: Keys and values handed back last time, kept only when not `continuous`.
        memory: Bytes of everything that the layer holds; None: of its keys and values.
        placed: Where its rows lie, in a pool that several requests share.
    """

    cache: int
    layer: int
    part: str
    class_name: str
    new_keys: Tensor
    new_values: Tensor
    keys: Tensor
    values: Tensor
    held_keys: Tensor | None
    held_values: Tensor | None
    length: int
    capacity: int | None
    window: int | None
    continuous: bool
    settled: bool
    known: bool
    earlier: tuple[Tensor, Tensor] | None = None
    memory: int | None = None
    placed: Placed | None = None

    @property
    def held_bytes(self) -> int:
        """Memory of what the layer holds; keys that are the values too count once."""
        keys, values = self.held_keys, self.held_values
        if self.memory is not None:
            return self.memory
        if keys is None or values is None:
            return 0
        return keys.nbytes + (0 if self.is_one else values.nbytes)

    @property
    def is_one(self) -> bool:
        """Whether keys and values are the same tensor, held once."""
        keys, values = self.held_keys, self.held_values
        if keys is None or values is None or keys.shape != values.shape:
            return False
        return keys is values or (keys.numel() > 0 and keys.data_ptr() == values.data_ptr())


class CacheChange(Struct, frozen=True):
    """A change of a cache other than an update: crop, reorder, repeat, select, reset.

    Attributes:
        cache: Serial number of the cache object.
        kind: "crop", "reorder", "repeat", "select" or "reset".
        layers: The cache's layer indices that it may have touched.
        before, after: Rows held per layer, around the change.
        removed: Rows taken off the end per layer; a window may have hidden some of them.
        order: Sequence that each sequence took over (reorder, select); times (repeat).
    """

    cache: int
    kind: str
    layers: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    removed: tuple[int, ...]
    order: tuple[int, ...] = ()


class Recurrent(Struct, frozen=True):
    """Recurrent memory of one layer of a hybrid model: constant in length.

    Attributes:
        cache: Serial number of the cache object.
        layer: The cache's own layer index.
        nbytes: Bytes of all its recurrent and convolution tensors.
    """

    cache: int
    layer: int
    nbytes: int


class Lingering(Struct, frozen=True):
    """A cache layer as an earlier forward left it.

    Attributes:
        cache: Serial number of the cache object.
        layer: The cache's own layer index.
        keys, values: What it holds.
        given: Whether its cache is the second half of the one that the forward was given.
    """

    cache: int
    layer: int
    keys: Tensor
    values: Tensor
    given: bool = False


Keep = Callable[[AttentionCall], AttentionCall]
KeepLate = Callable[[Sequence[AttentionCall]], Sequence[AttentionCall]]


class Beginning(Struct, frozen=True):
    """A forward that is about to run.

    Attributes:
        arguments: What it is called with, by name.
        tokens: Ids in, [sequences, new]; None when embeddings are given.
        caches: Serial numbers of the caches it is given, as far as they were met.
        changes: Changes of caches since the forward before.
        seen: Number of attention calls seen in it so far, whenever asked.
        keep: Takes what calls that read from no known cache are given to while the forward runs;
            what that returns is kept in the call's place. And takes what all of them are given to
            where the forward is over; None: nothing is.
        fed: First token of each request of a packed forward, by the number of its cache.
        placed: Names of the arguments that were given by place.
    """

    arguments: Mapping[str, object]
    tokens: Tensor | None
    caches: frozenset[int]
    changes: tuple[CacheChange, ...]
    seen: Callable[[], int]
    keep: Callable[[Keep, KeepLate | None], None] = lambda *_: None
    fed: Mapping[int, int] = field(default_factory=dict)
    placed: tuple[str, ...] = ()


class Piece(NamedTuple):
    """Rows that a sequence of a cache has of another one.

    Attributes:
        cache: Serial number of the other cache object.
        sequence: Of it.
        first: Slot that its first row has in this one; padding stands before it.
        rows: That are equal, bit by bit; behind them stands padding.
    """

    cache: int
    sequence: int
    first: int
    rows: int


class CopyOf(NamedTuple):
    """An update of a cache that was met with the rows of others in it.

    Attributes:
        update: Which of the forward's.
        rows: There were before.
        pieces: Whose each sequence's are.
    """

    update: int
    rows: int
    pieces: tuple[Piece, ...]

    @property
    def donors(self) -> frozenset[int]:
        """Caches whose rows they are."""
        return frozenset(one.cache for one in self.pieces)

    @property
    def whole(self) -> bool:
        """Whether no sequence has padding."""
        return all(one.rows == self.rows for one in self.pieces)


class Remade(NamedTuple):
    """An update of a cache that was met with rows in it that are made of another's.

    Attributes:
        update: Which of the forward's.
        cache: Serial number of the other cache object.
        rows: How many it came with.
        sequences: Of the other cache, each as it is in this one, [sequences].
        keys, values: What the other one holds.
    """

    update: int
    cache: int
    rows: int
    sequences: tuple[int, ...]
    keys: Tensor
    values: Tensor

    @property
    def donors(self) -> frozenset[int]:
        """The other cache."""
        return frozenset((self.cache,))


class Forward(Struct, frozen=True):
    """One outermost forward of the watched model.

    Attributes:
        number: Counted from 0.
        model: What was called: the watched model, or its encoder.
        part: "model" or "encoder".
        arguments: What it was called with, by name.
        tokens: Ids in, [sequences, new]; None when embeddings were given.
        sequences, new: Size of what came in.
        calls: Attention calls in order.
        updates_before: For each call, how many of `updates` came before it.
        updates: Cache updates in order.
        took: How long; a request's part takes its share.
        changes: Changes of caches since the forward before.
        recurrent: Recurrent memory written.
        lingering: Cache layers that were not updated, where some call read none that was.
        copies: Updates of caches that were met with rows of others in them, or with what was made
            of them.
        pending: Changes of caches whose rows those are, which no forward of their own used yet.
        logits: [sequences, rows, vocab]; None if the model returned none.
        result: All it returned.
        took: How long; times of requests are their share.
        own_ns: Our own time, until it was handed over.
        choices: What it selected (experts, slots), where somebody wanted to know.
        part_of: The packed forward that this is a request's part of; times are its share.
        pattern: What a step must be like to be like this one.
        batch: All of it together, if it is like an earlier one.
    """

    number: int
    model: nn.Module
    part: str
    arguments: Mapping[str, object]
    tokens: Tensor | None
    sequences: int
    new: int
    calls: Sequence[AttentionCall]
    updates: Sequence[CacheUpdate]
    took: Took
    updates_before: tuple[int, ...] = ()
    changes: tuple[CacheChange, ...] = ()
    recurrent: tuple[Recurrent, ...] = ()
    lingering: tuple[Lingering, ...] = ()
    copies: tuple[CopyOf | Remade, ...] = ()
    pending: tuple[CacheChange, ...] = ()
    logits: Tensor | None = None
    result: object = None
    own_ns: int = 0
    choices: tuple[Choice, ...] = ()
    part_of: Part | None = None
    pattern: Pattern | None = None
    batch: Batch | None = None

    def argument(self, name: str) -> Tensor | None:
        """A tensor it was called with, by name."""
        value = self.arguments.get(name)
        return value if isinstance(value, Tensor) else None

    @property
    def cache_bytes(self) -> int:
        """Memory that the updated cache layers hold afterwards."""
        if self.batch is not None:
            return self.batch.held_bytes
        last = {(one.cache, one.part, one.layer): one.held_bytes for one in self.updates}
        return sum(last.values())
