"""A recorded run: lazy, typed, immutable steps, with every tensor addressed by the words we use.

`layer` in these methods is an index into `meta.sites`: with one attention call per layer, the
layer itself. Rows are read and checked only when asked for, and come back as float32 (float64
where that was recorded).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kvtrace.errors import MissingError
from kvtrace.trace import dtypes
from kvtrace.trace.cells import rows_elsewhere, rows_of
from kvtrace.trace.chosen import Chosen
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.gaps import MOST_TOLD, gaps
from kvtrace.trace.lane import LaneStep
from kvtrace.trace.mask import only_sequence
from kvtrace.trace.meta import CacheLayer, Meta, Site, Tensor
from kvtrace.trace.notes import NOT_RECOVERED, Damage, Ending, Note
from kvtrace.trace.reference import Reference, covering
from kvtrace.trace.source import CACHED, Source
from kvtrace.trace.step import CacheStep, Run, Runs, SiteStep, Step
from kvtrace.trace.view import CacheView, cells_of, pool_slots, positions_of, slots_of
from kvtrace.trace.weights import Weights, derive, of_head

_T = TypeVar("_T")

NO_ATTENTION = "no attention was seen in this run"
"""What there is to say of a place in a trace that has none."""


class Trace:
    """One recorded run: what `kvtrace.open` gives; iterating goes through its steps."""

    __slots__ = ("_chosen", "_source")

    def __init__(self, source: Source) -> None:
        self._source = source
        self._chosen = Chosen(source)

    def __repr__(self) -> str:
        return f"<Trace {self.name}: {self.meta.model.name}, {len(self)} steps>"

    def __len__(self) -> int:
        return len(self._source.step_numbers())

    def __iter__(self) -> Iterator[Step]:
        return map(self._source.step, self._source.step_numbers())

    # -- the whole run ---------------------------------------------------------------------

    @property
    def name(self) -> str:
        """File name without its folder."""
        return self._source.name

    @property
    def meta(self) -> Meta:
        """Model, sites, cache layers, lanes."""
        return self._source.meta

    @property
    def notes(self) -> Sequence[Note]:
        """Notes, findings and bookmarks."""
        return self._source.notes

    @property
    def ending(self) -> Ending | None:
        """How the recording ended; None: incomplete, or still being written."""
        return self._source.ending

    @property
    def damage(self) -> Sequence[Damage]:
        """Parts of the file that can't be read."""
        return self._source.damage

    @property
    def missing(self) -> Sequence[str]:
        """Steps that are known and not in the file, in words: of many the first."""
        behind = self.numbers[-1] if len(self.numbers) else -1
        noted = (note.step for note in self.not_recovered if note.step is not None)
        gone = chain(gaps(self.numbers), dict.fromkeys(step for step in noted if step > behind))
        return [f"step {number} is not in the file" for number in islice(gone, MOST_TOLD)]

    @property
    def not_recovered(self) -> Sequence[Note]:
        """What could not be read where this was copied from, as the copy says."""
        return [note for note in self.notes if note.text.startswith(NOT_RECOVERED)]

    @property
    def is_whole(self) -> bool:
        """Whether the recording ended, and nothing of it is damaged or missing."""
        return self.ending is not None and not self.damage and not self.missing

    @property
    def source(self) -> Source:
        """Where the rows come from."""
        return self._source

    @property
    def numbers(self) -> Sequence[int]:
        """Numbers of the recorded steps, ascending."""
        return self._source.step_numbers()

    @property
    def overview(self) -> NDArray[np.void]:
        """All steps at a glance; see `source.OVERVIEW`."""
        return self._source.overview()

    def step(self, number: int) -> Step:
        """The step of that number.

        Raises:
            MissingError: It is not in this trace.
        """
        return self._source.step(number)

    # -- tokens ----------------------------------------------------------------------------

    def token_text(self, token: int) -> str:
        """Text of a token id, raw (pass it through `text.token` to show it); – for none."""
        if token < 0:
            return "–"
        text = self._source.token_text(token)
        return f"<{token}>" if text is None else text

    def chosen(self, number: int, sequence: int = 0, *, told: bool = False) -> int | None:
        """The token chosen after a step; None while unknown.

        Args:
            number: Step.
            sequence: Row of the batch.
            told: Only where whoever chose it said so. Else it may be the token that was fed next:
                a program may feed another one than any that its logits led to.

        Raises:
            MissingError: There is no such step.
        """
        return (self._chosen.told if told else self._chosen.after)(number, sequence)

    # -- rows ------------------------------------------------------------------------------

    def site(self, layer: int) -> Site:
        """The site at a row of the grid.

        Raises:
            MissingError: There is no such site.
        """
        sites = self.meta.sites
        if not sites:
            raise MissingError(f"{self.name}: {NO_ATTENTION}")
        if not 0 <= layer < len(sites):
            raise MissingError(
                f"{self.name}: layer {layer} was asked for, but the trace has {len(sites)} "
                f"attention sites, 0 to {len(sites) - 1}."
            )
        return sites[layer]

    def cache_layer(self, layer: int) -> CacheLayer:
        """The cache layer that a site reads."""
        return self.meta.cache_layers[self.site(layer).reads]

    def cache_step(self, number: int, layer: int) -> CacheStep:
        """What a step did to the rows that a site reads.

        Raises:
            MissingError: The site did not attend in this step.
        """
        found = self.step(number).cache_step(self.site(layer).reads)
        return self._there(found, f"layer {layer} did not attend in step {number}")

    def site_step(self, number: int, layer: int) -> SiteStep:
        """What a site did in a step.

        Raises:
            MissingError: The site did not attend in this step.
        """
        found = self.step(number).site_step(self.site(layer).index)
        return self._there(found, f"layer {layer} did not attend in step {number}")

    def _there(self, found: _T | None, lacks: str) -> _T:
        """What was found; a MissingError that says what the trace lacks, where nothing was."""
        if found is None:
            raise MissingError(f"{self.name}: {lacks}.")
        return found

    def cache(
        self,
        number: int,
        layer: int,
        sequence: int = 0,
        *,
        head: int | None = None,
        lane: str = CACHED,
    ) -> CacheView:
        """The K,V rows that a site was given in a step.

        Args:
            number: Step.
            layer: Site.
            sequence: Row of the batch.
            head: Only this kv head; the head axis then has length 1.
            lane: Another lane's rows for the same positions; NaN where the trace has none.

        Raises:
            MissingError: The site did not attend in this step.
            TraceError: The rows are damaged.
        """
        group = self.cache_step(number, layer)
        runs, pool = group.attended[sequence], group.pool[sequence : sequence + 1]
        positions = positions_of(runs)
        if lane == CACHED:
            keys = self._cells(layer, Tensor.KEYS, runs, head)
            values = self._cells(layer, Tensor.VALUES, runs, head)
        else:
            found, store = self.reference(number, sequence, lane), self.cache_layer(layer)
            keys = rows_elsewhere(found, layer, store, Tensor.KEYS, positions, head)
            values = rows_elsewhere(found, layer, store, Tensor.VALUES, positions, head)
        return CacheView(
            keys,
            values,
            cells_of(runs),
            slots_of(runs),
            positions,
            pool_slots(pool[0] if pool else ()),
        )

    def _cells(self, layer: int, tensor: Tensor, runs: Runs, head: int | None) -> Floats:
        return rows_of(self._source, self.cache_layer(layer), tensor, runs, head)

    def rows(
        self,
        number: int,
        layer: int,
        tensor: Tensor,
        sequence: int = 0,
        *,
        head: int | None = None,
        lane: str = CACHED,
    ) -> Floats | None:
        """Rows that are new in a step: [heads or kv_heads, new, dim].

        KEYS and VALUES are the cells the step wrote; none for a site that reads shared rows.
        In another lane they are the rows of the step's tokens, in a cross-attention all of the
        other text.

        Args:
            number: Step.
            layer: Site.
            tensor: Which.
            sequence: Row of the batch.
            head: Only this head, a kv head of KEYS and VALUES; the head axis then has length 1.
            lane: Whose.

        Returns:
            None if they were not recorded in that lane.

        Raises:
            MissingError: There is no such step; KEYS or VALUES of a site that did not attend.
            TraceError: The rows are damaged.
        """
        if lane != CACHED:
            found = self.reference(number, sequence, lane)
            return None if found is None else found.new_rows(layer, tensor, head)
        site = self.site(layer)
        if tensor in (Tensor.KEYS, Tensor.VALUES):
            written = self.cache_step(number, layer)
            if written.rows == 0:
                return None
            first = written.first_cell + sequence * written.rows
            return self._cells(layer, tensor, (Run(first, written.rows, 0, 0),), head)
        raw = self._source.site_rows(number, site.index, tensor, head)
        return None if raw is None else dtypes.widen(raw[sequence], site.dtype)

    def queries(self, number: int, layer: int, sequence: int = 0) -> Floats:
        """Q of the step's new rows, after position encoding: [heads, new, key_dim].

        Raises:
            MissingError: They were not recorded.
        """
        found = self.rows(number, layer, Tensor.QUERIES, sequence)
        return self._there(found, f"step {number}, layer {layer}: queries not recorded")

    def output(self, number: int, layer: int, sequence: int = 0) -> Floats:
        """The attention output before the output projection: [heads, new, value_dim].

        Raises:
            MissingError: It was not recorded.
        """
        found = self.rows(number, layer, Tensor.OUTPUT, sequence)
        return self._there(found, f"step {number}, layer {layer}: output not recorded")

    # -- derived ---------------------------------------------------------------------------

    def visible(
        self, number: int, layer: int, sequence: int = 0, query: int | None = None
    ) -> NDArray[np.bool_]:
        """Which rows each query could see: [1 or heads, new, seq]; with `query`, [.., 1, seq].

        Raises:
            MissingError: The mask is not in this trace.
        """
        mask, site = self.site_step(number, layer).mask, self.site(layer).index
        seq = sum(run.count for run in self.cache_step(number, layer).attended[sequence])
        if not mask.full:
            new = self.step(number).new_at(site)
            row = None if query is None else query % max(new, 1)
            return mask.visible(sequence, new, seq, query_row=row)[None]
        stored = self._source.full_mask(number, site)
        stored = self._there(stored, f"step {number}, layer {layer}: mask not recorded")
        return np.asarray(only_sequence(stored, sequence, seq, query), np.bool_)

    def bias(
        self, number: int, layer: int, sequence: int = 0, query: int | None = None
    ) -> Floats | None:
        """The additive bias on the scores, [1 or heads, 1 or new, seq]; None without one.

        Raises:
            MissingError: There was one, and it is not in this trace.
        """
        if not self.site_step(number, layer).mask.bias:
            return None
        stored = self._source.bias(number, self.site(layer).index)
        stored = self._there(stored, f"step {number}, layer {layer}: bias not recorded")
        seq = sum(run.count for run in self.cache_step(number, layer).attended[sequence])
        return np.asarray(only_sequence(stored, sequence, seq, query), np.float32)

    def weights(
        self,
        number: int,
        layer: int,
        head: int | None = None,
        sequence: int = 0,
        query: int | None = None,
        *,
        keys: Floats | None = None,
    ) -> Weights:
        """Attention weights, derived: [heads, new, seq].

        Args:
            number: Step.
            layer: Site.
            head: Only this query head: [1, new, seq].
            sequence: Row of the batch.
            query: Only this row of the step (-1 is the last): [.., 1, seq].
            keys: K rows that the caller has already, [kv_heads or 1, seq, key_dim].

        Raises:
            MissingError: The site did not attend in this step.
            TraceError: The rows are damaged.
        """
        site = self.site(layer)
        if keys is None:
            kv_head = None if head is None else site.kv_head(head)
            runs = self.cache_step(number, layer).attended[sequence]
            keys = self._cells(layer, Tensor.KEYS, runs, kv_head)
        queries = self.rows(number, layer, Tensor.QUERIES, sequence, head=head)
        queries = self._there(queries, f"step {number}, layer {layer}: queries not recorded")
        visible = self.visible(number, layer, sequence, query)
        bias = self.bias(number, layer, sequence, query)
        if query is not None:
            queries = queries[:, query % queries.shape[1]][:, None]
        if head is not None:
            site, visible, bias = of_head(head, site, visible, bias)
        return derive(site, queries, keys, visible, bias)

    def compared(self, number: int, lane: str = "recomputed") -> LaneStep | None:
        """How another lane compares in a step; None: not compared (never: equal).

        Raises:
            TraceError: It is damaged.
        """
        return self._source.lane_step(lane, number)

    def reference(
        self, number: int, sequence: int = 0, lane: str = "recomputed"
    ) -> Reference | None:
        """The lane's own forward that covers a step of a sequence; None: it was not kept.

        Raises:
            TraceError: It is damaged.
        """
        return covering(self._source, number, sequence, lane)
