"""The traces of several ranks as one `Source`: all heads of the model, read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kvtrace.errors import MissingError, TraceError
from kvtrace.files.ranks.agree import agreement
from kvtrace.files.ranks.heads import Heads
from kvtrace.files.ranks.join import counted_once, join_comparisons, join_steps
from kvtrace.files.ranks.plan import plan
from kvtrace.files.reading.damage import DamageList
from kvtrace.files.reading.recent import Recent
from kvtrace.files.reading.source import FileSource
from kvtrace.trace import Damage, Ending, LaneStep, Meta, Note, Step, Tensor
from kvtrace.trace.dtypes import Array

_STEPS_KEPT = 64
_SUMMED = ("cached_flops", "recomputed_flops", "cache_bytes")


class JoinedSource:
    """Implements `kvtrace.trace.Source` over one file for each rank."""

    def __init__(self, name: str, ranks: Sequence[FileSource]) -> None:
        """Put them together.

        Args:
            name: What to call the whole.
            ranks: In the order of their heads, none twice.

        Raises:
            TraceError: They are not ranks of one run.
        """
        self.name = name
        self._ranks = tuple(ranks)
        self._names = tuple(rank.name for rank in ranks)
        self._steps: Recent[int, Step] = Recent(_STEPS_KEPT)
        self._passes: Recent[tuple[str, int], Step] = Recent(_STEPS_KEPT)
        self._twins = DamageList()
        self._metas: tuple[Meta, ...] = ()
        self._put_together()
        if not self._agreed.numbers and any(len(rank.step_numbers()) for rank in ranks):
            raise TraceError(
                f"{name}: the ranks have no step in common ({'; '.join(self._agreed.said)}). "
                "Name the files of one run."
            )

    def _put_together(self) -> None:
        metas = tuple(rank.meta for rank in self._ranks)
        if metas != self._metas:
            self._metas, self._plan = metas, plan(self._names, metas)
        self._agreed = agreement(self._ranks)
        self._numbers = frozenset(self._agreed.numbers)

    # -- the whole run ---------------------------------------------------------------------

    @property
    def meta(self) -> Meta:
        """Of the whole model; a missing rank is its banner."""
        return self._plan.meta

    @property
    def notes(self) -> Sequence[Note]:
        """Notes of all ranks, those that several have once."""
        return tuple(dict.fromkeys(note for rank in self._ranks for note in rank.notes))

    @property
    def ending(self) -> Ending | None:
        """How it ended: an error of any rank first; None while one of them has no end."""
        endings = [rank.ending for rank in self._ranks]
        known = [one for one in endings if one is not None]
        if len(known) < len(endings):
            return None
        return next((one for one in known if one.reason == "error"), known[0])

    @property
    def damage(self) -> Sequence[Damage]:
        """What can't be read of any rank, and where the ranks do not agree."""
        of_files = [
            Damage(f"{rank.name}: {one.text}", one.offset)
            for rank in self._ranks
            for one in rank.damage
        ]
        apart = [Damage(text, 0) for text in (*self._plan.missing, *self._agreed.said)]
        return (*apart, *of_files, *self._twins.all())

    def left_out(self) -> tuple[str, ...]:
        """What is left out if nothing more comes."""
        return agreement(self._ranks, closed=True).said

    def refresh(self) -> bool:
        """Look for what any rank added since."""
        grown = [rank.refresh() for rank in self._ranks]
        if any(grown):
            self._put_together()
        return any(grown)

    def again(self) -> JoinedSource:
        """The same files for another thread.

        Raises:
            TraceError: Nothing of one can be read any more.
        """
        return JoinedSource(self.name, [rank.again() for rank in self._ranks])

    @property
    def fate(self) -> str:
        """What became of the names of the files since they were opened; empty: nothing."""
        return next(filter(None, (rank.fate for rank in self._ranks)), "")

    def step_numbers(self) -> Sequence[int]:
        """Steps that all ranks have and tell alike."""
        return self._agreed.numbers

    def overview(self) -> NDArray[np.void]:
        """All steps at a glance."""
        numbers = np.array(self._agreed.numbers, np.int64)
        views = [rank.overview() for rank in self._ranks]
        rows = [view[np.searchsorted(view["number"], numbers)] for view in views]
        whole = rows[0].copy()
        for name in _SUMMED:
            whole[name] = sum(one[name] for one in rows)
        whole["elapsed_ns"] = np.max([one["elapsed_ns"] for one in rows], axis=0)
        whole["chosen"] = np.max([one["chosen"] for one in rows], axis=0)
        return whole

    def step(self, number: int) -> Step:
        """One step of all ranks.

        Raises:
            MissingError: It is not in all of them.
            TraceError: They tell of different steps.
        """
        if number not in self._numbers:
            raise MissingError(f"{self.name}: step {number} is not in the traces of all ranks.")
        return self._steps.get_or(number, lambda: self._joined(number))

    def _joined(self, number: int) -> Step:
        step = join_steps(self._names, [rank.step(number) for rank in self._ranks])
        return counted_once(
            step,
            self._plan,
            lambda rank, index, tensor: self._ranks[rank].written(number, index, tensor),
        )

    def token_text(self, token: int) -> str | None:
        """Text of a token id, raw; None if no rank knows it."""
        found = (rank.token_text(token) for rank in self._ranks)
        return next((text for text in found if text is not None), None)

    # -- rows ------------------------------------------------------------------------------

    def writes(self, layer: int) -> NDArray[np.void]:
        """Which step wrote which cells of a cache layer."""
        return self._ranks[0].writes(layer)

    def site_rows(self, step: int, site: int, tensor: Tensor, head: int | None) -> Array | None:
        """QUERIES or OUTPUT of a step, [sequences, heads, new, dim]; with `head`, one head."""
        return _rows(
            self._plan.sites[site],
            lambda rank, own: self._ranks[rank].site_rows(step, site, tensor, own),
            head,
        )

    def written(self, step: int, layer: int, tensor: Tensor) -> Array | None:
        """What a step wrote of a site (QUERIES, OUTPUT) or of a cache layer (KEYS, VALUES).

        kv heads that several ranks hold are held against each other.
        """
        if tensor in (Tensor.QUERIES, Tensor.OUTPUT):
            return self.site_rows(step, layer, tensor, None)
        read: dict[int, Array | None] = {}

        def own(rank: int, _: int | None) -> Array | None:
            if rank not in read:
                read[rank] = self._ranks[rank].written(step, layer, tensor)
            return read[rank]

        heads = self._plan.layers[layer]
        for (one, first), (other, second) in heads.twins:
            here, there = own(one, None), own(other, None)
            if here is None or there is None:
                continue
            if here[:, first].tobytes() != there[:, second].tobytes():
                self._twins.add(
                    f"step {step}, cache layer {layer}: {tensor.name.lower()} of a kv head are "
                    f"not the same in {self._names[one]} and {self._names[other]}; the first "
                    "are taken",
                    0,
                )
        return _rows(heads, own, None)

    def cells(self, layer: int, tensor: Tensor, first: int, count: int, head: int | None) -> Array:
        """KEYS or VALUES of consecutive cells, [kv_heads, count, dim]; with `head`, one."""
        return self._plan.layers[layer].rows(
            lambda rank, own: self._ranks[rank].cells(layer, tensor, first, count, own), head
        )

    def full_mask(self, step: int, site: int) -> Array | None:
        """The stored mask, uint8 [sequences|1, heads|1, new, seq]."""
        return self._beside(site, lambda rank: rank.full_mask(step, site))

    def bias(self, step: int, site: int) -> Array | None:
        """The stored bias, float32 [sequences|1, heads|1, new, seq]."""
        return self._beside(site, lambda rank: rank.bias(step, site))

    def _beside(self, site: int, read: Callable[[FileSource], Array | None]) -> Array | None:
        """A mask or bias: as it is where all ranks have the same, else head by head."""
        parts = [read(rank) for rank in self._ranks]
        there = [part for part in parts if part is not None]
        if len(there) < len(parts):
            return None
        if all(part.shape[1] == 1 and np.array_equal(part, there[0]) for part in there):
            return there[0]
        places = self._plan.sites[site].places
        picked = [there[rank][:, [min(own, there[rank].shape[1] - 1)]] for rank, own in places]
        return np.concatenate(picked, axis=1)

    # -- other lanes -----------------------------------------------------------------------

    def lane_step(self, lane: str, step: int) -> LaneStep | None:
        """The comparison of a lane for a step; None: not compared by every rank."""
        found = [rank.lane_step(lane, step) for rank in self._ranks]
        there = [one for one in found if one is not None]
        return join_comparisons(self._plan, there) if len(there) == len(found) else None

    def pass_numbers(self, lane: str) -> Sequence[int]:
        """Passes of a lane that every rank has."""
        each = [set(rank.pass_numbers(lane)) for rank in self._ranks]
        return sorted(set.intersection(*each))

    def pass_step(self, lane: str, number: int) -> Step | None:
        """A lane's own forward over a whole path of tokens; None: not kept by every rank."""
        found = [rank.pass_step(lane, number) for rank in self._ranks]
        there = [one for one in found if one is not None]
        if len(there) < len(found):
            return None
        return self._passes.get_or((lane, number), lambda: join_steps(self._names, there))

    def pass_rows(
        self, lane: str, number: int, tensor: Tensor, index: int, head: int | None
    ) -> Array | None:
        """Rows of a pass, [sequences, heads, places, dim]; with `head`, one."""
        kv = tensor in (Tensor.KEYS, Tensor.VALUES)
        return _rows(
            (self._plan.layers if kv else self._plan.sites)[index],
            lambda rank, own: self._ranks[rank].pass_rows(lane, number, tensor, index, own),
            head,
        )

    def pass_mask(self, lane: str, number: int, site: int) -> Array | None:
        """The stored mask of a pass, uint8 [sequences|1, heads|1, places, places]."""
        return self._beside(site, lambda rank: rank.pass_mask(lane, number, site))

    def pass_bias(self, lane: str, number: int, site: int) -> Array | None:
        """The stored bias of a pass, float32 [sequences|1, heads|1, places|1, places]."""
        return self._beside(site, lambda rank: rank.pass_bias(lane, number, site))


def _rows(
    heads: Heads, read: Callable[[int, int | None], Array | None], head: int | None
) -> Array | None:
    """Rows of all ranks; None where one of them recorded none."""
    try:
        return heads.rows(read, head)
    except LookupError:
        return None
