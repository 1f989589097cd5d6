"""A lane's own rows: one forward without a cache over a whole path of tokens, a *pass*.

A causal model's rows do not depend on later tokens, so one pass serves every step on its path.
Rows are addressed by place: the n-th token of the path, left padding included.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from kvtrace.trace import dtypes
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.mask import only_sequence
from kvtrace.trace.meta import CacheLayer, Lane, Site, Tensor
from kvtrace.trace.source import Source
from kvtrace.trace.step import NO_TOKEN, SiteStep, Step, stands_for_none


def places_of(known: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each wanted position among the positions of a pass; -1 where it is not there."""
    if not known.size:
        return np.full(wanted.shape, -1, np.int64)
    order = np.argsort(known, kind="stable")
    places = order[np.minimum(np.searchsorted(known[order], wanted), known.size - 1)]
    return np.where(known[places] == wanted, places, -1)


def at_places(rows: Floats, places: NDArray[np.int64]) -> Floats:
    """Rows of a pass, [..., len(places), dim]; NaN where a place is -1."""
    taken = rows[..., np.maximum(places, 0), :]
    absent = places < 0
    return np.where(absent[:, None], np.float32(np.nan), taken) if absent.any() else taken


def in_front(step: Step, cache_layer: int) -> int:
    """Rows of a pass that a cache layer has in front of those of the text, of no token."""
    group = step.cache_step(cache_layer)
    first = group.attended[0][0] if group is not None and group.attended[0] else None
    return first.count if first is not None and stands_for_none(first.position) else 0


class Reference(Struct, frozen=True):
    """A pass as one step of one sequence sees it.

    Attributes:
        lane: Whose.
        step: The pass: tokens, positions, masks over places.
        sequence: Row of the pass.
        first: Place of the step's first new row.
        new: Rows new in the step.
        led: Rows in front of the text, of no token, that count as its first places; without them
            places are those of tokens.
    """

    lane: Lane
    step: Step
    sequence: int
    first: int
    new: int
    _sites: Sequence[Site]
    _caches: Sequence[CacheLayer]
    _source: Source
    led: int = 0

    @property
    def places(self) -> int:
        """Places up to and including the step's last row."""
        return self.first + self.new

    @property
    def positions(self) -> NDArray[np.int64]:
        """Logical position of each place, [places]; negative: padding, or of no token."""
        known = self.step.positions[self.sequence][: self.places - self.led]
        return np.concatenate([NO_TOKEN + np.arange(self.led), np.array(known, np.int64)])

    def leading(self, layer: int) -> Reference:
        """The same, where rows that a layer has in front of its text are its first places."""
        front = in_front(self.step, self._sites[layer].reads)
        return replace(self, led=front, first=self.first - self.led + front)

    def rows(self, layer: int, tensor: Tensor, head: int | None = None) -> Floats | None:
        """Rows of all places: [heads or kv_heads, places, dim]; None: not recorded.

        K and V of a cross-attention are all rows of the other text.

        Raises:
            TraceError: The rows are damaged.
        """
        site, dtype = self._sites[layer], self.lane.dtype
        kv = tensor in (Tensor.KEYS, Tensor.VALUES)
        index = self._caches[site.reads].index if kv else site.index
        raw = self._source.pass_rows(self.lane.name, self.step.number, tensor, index, head)
        if raw is None:
            return None
        rows = dtypes.widen(raw[self.sequence], dtype)
        if kv and self.crosses(layer):
            return rows
        front = in_front(self.step, index) if kv else 0
        found: Floats = rows[:, front : front + self.places - self.led]
        if not self.led:
            return found
        none = np.zeros((rows.shape[0], self.led, rows.shape[2]), rows.dtype)
        return np.concatenate([rows[:, :front] if front == self.led else none, found], axis=1)

    def new_rows(self, layer: int, tensor: Tensor, head: int | None) -> Floats | None:
        """As `rows`, of the step's own places; in a cross-attention K and V are all the same.

        Raises:
            TraceError: The rows are damaged.
        """
        rows = self.rows(layer, tensor, head)
        whole = tensor in (Tensor.KEYS, Tensor.VALUES) and self.crosses(layer)
        return rows if rows is None or whole else rows[:, self.first :]

    def crosses(self, layer: int) -> bool:
        """Whether a site attends to another text, whose rows are no places of this one."""
        return self._sites[layer].kind == "cross"

    def places_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The place of each logical position, same shape; -1 where the pass has none."""
        return places_of(self.positions, positions)

    def rows_at(
        self, layer: int, tensor: Tensor, positions: NDArray[np.int64], head: int | None
    ) -> Floats | None:
        """Rows at logical positions: [heads or kv_heads, len(positions), dim].

        NaN where the pass has no such position; None: nothing of the tensor was recorded.

        Raises:
            TraceError: The rows are damaged.
        """
        whole = self if self.crosses(layer) else self.leading(layer)
        rows = whole.rows(layer, tensor, head)
        if rows is None:
            return None
        if self.crosses(layer):
            return at_places(rows, places_of(np.arange(rows.shape[1]), positions))
        return at_places(rows, whole.places_of(positions))

    def site_step(self, layer: int) -> SiteStep | None:
        """What a site did in the pass; None if it did not attend."""
        return self.step.site_step(self._sites[layer].index)

    def visible(self, layer: int) -> NDArray[np.bool_] | None:
        """Which places each new row could see, [1 or heads, new, places]; None: not recorded.

        In a cross-attention those are all rows of the other text.
        """
        found = self.site_step(layer)
        if found is None:
            return None
        rows, seq, seen = self._new_rows, self._seq(layer), self._seen(layer)
        if not found.mask.full:
            return found.mask.visible(self.sequence, self.step.new, seq)[None, rows, seen]
        stored = self._source.pass_mask(self.lane.name, self.step.number, self._sites[layer].index)
        if stored is None:
            return None
        part = only_sequence(stored, self.sequence, seq).astype(np.bool_)
        return part[:, rows if part.shape[1] > 1 else slice(None), seen]

    @property
    def _new_rows(self) -> slice:
        """Of all tokens, those that are new in the step."""
        return slice(self.first - self.led, self.places - self.led)

    def _seen(self, layer: int) -> slice:
        """Of all rows that a site attends to, those of the places up to the step's last."""
        if self.crosses(layer):
            return slice(None)
        front = in_front(self.step, self._sites[layer].reads)
        return slice(front - self.led, front + self.places - self.led)

    def _seq(self, layer: int) -> int:
        """Rows that a site attends to in the whole pass."""
        group = self.step.cache_step(self._sites[layer].reads)
        if group is None:
            return 0 if self.crosses(layer) else self.step.new
        return group.rows

    def bias(self, layer: int) -> Floats | None:
        """Additive bias of the new rows, [1 or heads, 1 or new, places]; None without one."""
        found = self.site_step(layer)
        if found is None or not found.mask.bias:
            return None
        stored = self._source.pass_bias(self.lane.name, self.step.number, self._sites[layer].index)
        if stored is None:
            return None
        part = only_sequence(stored, self.sequence, self._seq(layer)).astype(np.float32)
        rows = self._new_rows if part.shape[1] > 1 else slice(None)
        return part[:, rows, self._seen(layer)]


def covering(source: Source, number: int, sequence: int, lane: str) -> Reference | None:
    """The lane's own forward that covers a step of a sequence; None: it was not kept.

    Raises:
        TraceError: It is damaged.
    """
    compared, found = source.lane_step(lane, number), source.meta.lane(lane)
    if compared is None or found is None or sequence >= len(compared.passes):
        return None
    place, row, first = compared.passes[sequence]
    step = source.pass_step(lane, place)
    if step is None:
        return None
    new = source.step(number).new
    if not (0 <= row < step.num_sequences and 0 <= first <= step.new - new):
        return None
    sites, caches = source.meta.sites, source.meta.cache_layers
    return Reference(found, step, row, first, new, sites, caches, source)
