"""Which rows a frame holds, in which order and how large: all from META and the step.

JSON in a frame never carries offsets. A step of few rows carries its tensors itself, one unit a
tensor; a longer one is cut into ROWS frames of at most 64 rows, one unit for each sequence and
head, so that one head of a long prefill can be read alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct

from kvtrace.errors import TraceError
from kvtrace.trace import Meta, Step, Tensor, dtypes
from kvtrace.trace.dtypes import Array

ROWS_PER_FRAME = 64
INLINE_ROWS = 8
_LAYOUTS_KEPT = 256

Shape = tuple[int, int, int, int]


class Stacked(Mapping[int, Array]):
    """Rows of several sites or cache layers that lie in one array, in ascending order.

    Attributes:
        indices: Sites or cache layers.
        whole: [indices, sequences, heads, rows, dim].
    """

    __slots__ = ("indices", "whole")

    def __init__(self, indices: tuple[int, ...], whole: Array) -> None:
        self.indices = indices
        self.whole = whole

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __getitem__(self, index: int) -> Array:
        if index not in self.indices:
            raise KeyError(index)
        rows: Array = self.whole[self.indices.index(index)]
        return rows

    def __contains__(self, index: object) -> bool:
        return index in self.indices


class StepRows(Struct, frozen=True):
    """The raw rows of a step, in storage dtype (see `trace.dtypes`).

    Attributes:
        queries: Site to [sequences, heads, new, key_dim].
        output: Site to [sequences, heads, new, value_dim].
        keys: Cache layer to [sequences, kv_heads, rows, key_dim].
        values: Cache layer to [sequences, kv_heads, rows, value_dim].
        masks: Site to its full mask, uint8 [sequences|1, heads|1, new, seq].
        biases: Site to its bias, float32 [sequences|1, heads|1, new, seq].
    """

    queries: Mapping[int, Array]
    output: Mapping[int, Array]
    keys: Mapping[int, Array]
    values: Mapping[int, Array]
    masks: Mapping[int, Array]
    biases: Mapping[int, Array]

    def of(self, tensor: Tensor) -> Mapping[int, Array]:
        """The rows of one tensor."""
        return (self.queries, self.keys, self.values, self.output)[tensor]


class Extent(Struct, frozen=True):
    """One tensor in the payload of a frame.

    Attributes:
        tensor: Which.
        index: Site (QUERIES, OUTPUT) or cache layer (KEYS, VALUES).
        shape: [sequences, heads, rows, dim] in this frame.
        dtype: As in `trace.dtypes`.
        start: First byte in the payload.
        unit: First unit.
        split: One unit for each sequence and head, instead of one for all.
    """

    tensor: Tensor
    index: int
    shape: Shape
    dtype: str
    start: int
    unit: int
    split: bool

    @property
    def units(self) -> int:
        """Number of units."""
        return self.shape[0] * self.shape[1] if self.split else 1

    @property
    def size(self) -> int:
        """Bytes."""
        sequences, heads, rows, dim = self.shape
        return sequences * heads * rows * dim * dtypes.itemsize(self.dtype)


class RowsOf(Struct, frozen=True, omit_defaults=True):
    """Which tensors of a step were recorded; in its JSON as lists of indices.

    Attributes:
        queries, output: Sites.
        keys: Cache layers (values alike).
        masks, biases: Site and shape of the stored mask or bias.
    """

    queries: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()
    masks: tuple[tuple[int, ...], ...] = ()
    biases: tuple[tuple[int, ...], ...] = ()


def rows_of(rows: StepRows) -> RowsOf:
    """What is in `rows`."""
    return RowsOf(
        _indices(rows.queries),
        _indices(rows.output),
        _indices(rows.keys),
        tuple((site, *rows.masks[site].shape) for site in sorted(rows.masks)),
        tuple((site, *rows.biases[site].shape) for site in sorted(rows.biases)),
    )


def _indices(rows: Mapping[int, Array]) -> tuple[int, ...]:
    return rows.indices if isinstance(rows, Stacked) else tuple(sorted(rows))


class Layout(Struct, frozen=True):
    """The rows of one frame.

    Attributes:
        extents: By (tensor, index), in the order they are stored.
        size: Bytes of all.
        units: Number of units.
        alike: Indices of a tensor that are all stored, and the shape and dtype that all of them
            have; without tensors of which they have not.
    """

    extents: Mapping[tuple[Tensor, int], Extent]
    size: int
    units: int
    alike: Mapping[Tensor, tuple[tuple[int, ...], Shape, str]]


class Layouts:
    """Layouts of the frames of one trace. Most decode steps share one, so it is made once."""

    __slots__ = ("_made", "_meta")

    def __init__(self, meta: Meta) -> None:
        self._meta = meta
        self._made: dict[tuple[object, ...], Layout] = {}

    def of(self, step: Step, recorded: RowsOf, dtype: str | None, part: int | None) -> Layout:
        """The layout of one frame of a step.

        Args:
            step: Gives sequences and rows.
            recorded: Which tensors there are.
            dtype: Of another lane; None for the recorded dtypes.
            part: Number of the ROWS frame; None for a step that carries its rows itself.

        Raises:
            TraceError: The step names a site or a cache layer that META does not have.
        """
        caches = tuple([(one.layers, one.rows, len(one.attended)) for one in step.caches])
        sites = tuple([(one.sites, one.new) for one in step.sites])
        batch = (step.num_sequences, step.new)
        stored = (recorded.queries, recorded.output, recorded.keys)
        key = (dtype, part, batch, stored, caches, sites)
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= _LAYOUTS_KEPT:
                self._made.clear()
            found = self._made[key] = self._make(step, recorded, dtype, part)
        return found

    def _make(self, step: Step, recorded: RowsOf, dtype: str | None, part: int | None) -> Layout:
        try:
            whole = _shapes(self._meta, step, recorded)
        except (IndexError, KeyError):
            raise TraceError(
                f"step {step.number} has rows of a layer that META, or the step, does not name."
            ) from None
        out: dict[tuple[Tensor, int], Extent] = {}
        start = unit = 0
        for tensor, index, (sequences, heads, rows, dim), own in whole:
            if part is not None:
                rows = max(0, min(ROWS_PER_FRAME, rows - part * ROWS_PER_FRAME))
            shape = (sequences, heads, rows, dim)
            extent = Extent(tensor, index, shape, dtype or own, start, unit, part is not None)
            if extent.size:
                out[tensor, index] = extent
                start, unit = start + extent.size, unit + extent.units
        return Layout(out, start, unit, _alike(out))


def _alike(
    extents: Mapping[tuple[Tensor, int], Extent],
) -> dict[Tensor, tuple[tuple[int, ...], Shape, str]]:
    """The tensors that have the same shape everywhere."""
    found = {}
    for tensor in Tensor:
        mine = [one for one in extents.values() if one.tensor is tensor]
        if len({(one.shape, one.dtype) for one in mine}) == 1:
            indices = tuple([one.index for one in mine])
            found[tensor] = indices, mine[0].shape, mine[0].dtype
    return found


def _shapes(meta: Meta, step: Step, recorded: RowsOf) -> list[tuple[Tensor, int, Shape, str]]:
    """(tensor, index, whole shape, dtype) of a step's rows, in the order they are stored."""
    found: list[tuple[Tensor, int, Shape, str]] = []
    if min((*recorded.queries, *recorded.output, *recorded.keys), default=0) < 0:
        raise IndexError
    for tensor, sites in ((Tensor.QUERIES, recorded.queries), (Tensor.OUTPUT, recorded.output)):
        for index in sites:
            site = meta.sites[index]
            shape = (step.num_sequences, site.num_heads, step.new_at(index), site.dim(tensor))
            found.append((tensor, index, shape, site.dtype))
    groups = {layer: group for group in step.caches for layer in group.layers}
    for index in recorded.keys:
        store, group = meta.cache_layers[index], groups[index]
        for tensor, dim in ((Tensor.KEYS, store.key_dim), (Tensor.VALUES, store.value_dim)):
            whole = (len(group.attended), store.num_kv_heads, group.rows, dim)
            found.append((tensor, index, whole, store.dtype))
    return found


def most_rows(step: Step) -> int:
    """Rows of the longest tensor of a step."""
    queries = [step.new if group.new is None else group.new for group in step.sites]
    return max([step.new, *queries, *[group.rows for group in step.caches]])


def num_frames(step: Step) -> int:
    """ROWS frames that hold a step's rows; 0: the step carries them itself."""
    rows = most_rows(step)
    return 0 if rows <= INLINE_ROWS else -(-rows // ROWS_PER_FRAME)
