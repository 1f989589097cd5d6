"""The calls of a step, looked at as one: all sites go on as they did in the step before.

Nearly every step of a model with a cache of its own adds one row to every layer. The same calls in
the same order, with so many rows more, are held against what was there in a single comparison.
Where sizes say otherwise no step is looked at so, and where rows do each site is followed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from msgspec import Struct
from torch import Size, Tensor

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.flow.rows import slots as where
from kvtrace.record.flow.rows.abreast import Copied
from kvtrace.record.flow.rows.band import Band, fresh_rows
from kvtrace.record.flow.rows.follower import RowFollower
from kvtrace.record.flow.rows.row_step import RowStep
from kvtrace.record.flow.rows.texts import Text
from kvtrace.record.match import PARTS, Digests
from kvtrace.record.version import version


class SteadyStep(Struct, frozen=True, eq=False):
    """A step whose sites all went on as in the one before.

    Attributes:
        sites: What such a step is like; the same object from step to step.
        calls: Its own.
        versions: Changes in place of the keys and values of each when it was seen.
        step: What each site did, its rows left out.
        fresh: Copies of the rows written, all keys, then all values,
            [2 · calls · sequences, kv_heads, new, dim].
        before, texts: Of each site, as it was and as it is.
    """

    sites: SteadySites
    calls: Sequence[AttentionCall]
    versions: Sequence[tuple[int, int]]
    step: RowStep
    fresh: Tensor
    before: Sequence[Text]
    texts: Sequence[Text]

    @property
    def rows(self) -> Tensor:
        """Rows written, [2, calls, sequences, kv_heads, new, dim]."""
        return self.fresh.view(2, len(self.sites.stores), -1, *self.fresh.shape[1:])

    def place(self, call: AttentionCall) -> int | None:
        """Which of its calls one is."""
        return self.sites.places.get((call.module, call.call))

    def of(self, place: int) -> tuple[RowStep, tuple[Digests, Digests]]:
        """What one site did, with its rows; and digests of all that it attended to."""
        rows, text = self.rows, self.texts[place]
        step = self.step.with_rows(self.before[place], (rows[0, place], rows[1, place]))
        return step, (text.keys, text.values)

    def written_over(self) -> list[int]:
        """Cache layers whose rows were changed in place since they were seen."""
        return [
            store
            for store, call, before in zip(
                self.sites.stores, self.calls, self.versions, strict=True
            )
            if (version(call.keys), version(call.values)) != before
        ]


@dataclass(slots=True, eq=False)
class SteadySites:
    """What a step must be like, and what it did.

    Attributes:
        keys: (module, number) of each call.
        stores: Cache layer of each.
        new: Query rows of each, per sequence.
        calls: Of the step that runs, if it is like that.
        versions: Changes in place of the keys and values of each call when it was seen.
        done: What the step did, once that is known to be this.
        places: Of the calls, by their keys.
    """

    keys: tuple[tuple[str, int], ...]
    stores: tuple[int, ...]
    new: int
    _band: Band
    _like: Tensor
    calls: Sequence[AttentionCall] = ()
    versions: Sequence[tuple[int, int]] = ()
    done: SteadyStep | None = None
    places: dict[tuple[str, int], int] = field(init=False)

    def __post_init__(self) -> None:
        self.places = {key: place for place, key in enumerate(self.keys)}

    @classmethod
    def of(
        cls,
        keys: Sequence[tuple[str, int]],
        stores: Sequence[int],
        copied: Sequence[Copied],
        steps: Sequence[RowStep],
    ) -> SteadySites | None:
        """After a step that was looked at call by call; None where its sites did not do the same.

        Args:
            keys: (module, number) of each call.
            stores: Cache layer of each.
            copied: What was looked at of each.
            steps: What each site did.
        """
        first = copied[0].given
        rows = first.keys
        alike = len(set(stores)) == len(stores) and all(
            step.fresh is not None
            and step.cells is steps[0].cells
            and (one.given.new, one.part) == (first.new, copied[0].part)
            and one.given.keys.shape == rows.shape
            and (one.given.keys.dtype, one.given.keys.device) == (rows.dtype, rows.device)
            for one, step in zip(copied, steps, strict=True)
        )
        band = Band.of([one.follower for one in copied]) if alike else None
        if band is None:
            return None
        like = torch.empty((0, *rows.shape[1:2], 0, rows.shape[3]), dtype=rows.dtype)
        return cls(tuple(keys), tuple(stores), first.new, band, like)

    @property
    def followers(self) -> Sequence[RowFollower]:
        """Of the sites."""
        return self._band.followers

    def begin(self, calls: Sequence[AttentionCall], start: int | None) -> bool:
        """Whether the calls of a forward that is over are those of such a step, by their sizes.

        Args:
            calls: They.
            start: Position of its first token, where the model was told.
        """
        if len(calls) != len(self.keys) or not self._band.stands or not self._band.may_start(start):
            return False
        versions = self._versions(calls)
        if versions is None:
            return False
        self.calls, self.versions, self.done = calls, versions, None
        return True

    def _versions(self, calls: Sequence[AttentionCall]) -> list[tuple[int, int]] | None:
        """Of keys and values of each call; None where one is not like that of the step before."""
        sequences, old, new = len(self._band.texts[0].ends), self._band.rows, self.new
        _, heads, _, dim = self._like.shape
        shape, dtype = Size((sequences, heads, old + new, dim)), self._like.dtype
        device, visible = calls[0].keys.device, None
        found, places = [], set()
        for call, (module, number) in zip(calls, self.keys, strict=True):
            keys, values = call.keys, call.values
            if not (
                call.module == module
                and call.call == number
                and call.kind == "self"
                and keys.shape == shape == values.shape
                and keys.dtype is dtype is values.dtype
                and keys.device == device
                and call.queries.shape[2] == new
            ):
                return None
            if call.visible is not None and call.visible is not visible:
                visible = call.visible
                if not where.seen(visible, old + new).all():
                    return None
            both = version(keys), version(values)
            if -1 in both:
                return None
            found.append(both)
            places.add((keys.data_ptr(), values.data_ptr()))
        return found if len(places) == len(calls) else None  # those that share rows are one

    @torch.no_grad()
    def look(self, number: int) -> int | None:
        """Compare all rows: where no old one changed, the new ones are known from now on.

        Args:
            number: Of the step.

        Returns:
            The part of each row that was looked at; None: all of it.
        """
        keys, values = [one.keys for one in self.calls], [one.values for one in self.calls]
        part = self._band.next_part(keys[0], values[0])
        if self._band.same(keys, values, part):
            fresh = fresh_rows(keys, values, self._band.rows)
            step, before = self._band.grow(fresh, number)
            texts = self._band.texts
            self.done = SteadyStep(self, self.calls, self.versions, step, fresh, before, texts)
        return part

    def looked(self, place: int, part: int | None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What must be compared of a call by itself, and its new rows: keys and values of both."""
        both, old = (self.calls[place].keys, self.calls[place].values), self._band.rows
        looked = both if part is None else tuple([rows[..., part::PARTS] for rows in both])
        return looked, tuple([rows[:, :, old:] for rows in both])

    def rest(self) -> None:
        """A step is over, or was none like that: nothing of it is kept."""
        self.calls, self.versions, self.done = (), (), None
