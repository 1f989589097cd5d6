"""Sites that go on abreast: what is remembered of their rows lies side by side, with room to grow.

Nearly all steps add one row to every layer and leave the others alone. Then one comparison tells
it of all of them, and the digests of the new rows are written behind those of the old. A site
that is followed by itself in between stands no longer where it was left: the band is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvtrace.record.flow.rows.follower import RowFollower
from kvtrace.record.flow.rows.row_step import RowStep, grown_step
from kvtrace.record.flow.rows.texts import Text, lengths, more_places
from kvtrace.record.match import PARTS, Digests, glances, in_parts

_Kind = TypeVar("_Kind", bound=np.generic)

ROOM = 64
"""Rows for which there is room at first, beside as many as there are."""


@dataclass(slots=True, eq=False)
class Band:
    """Sites whose newest texts have the same cells and positions.

    Attributes:
        followers: Of the sites.
        texts: The newest of each, as it was left here.
    """

    followers: tuple[RowFollower, ...]
    texts: list[Text]
    _digests: Digests
    _parts: Digests | None
    _lengths: NDArray[np.float32]

    @classmethod
    def of(cls, followers: Sequence[RowFollower]) -> Band | None:
        """Of sites that were followed one by one so far; None where they differ."""
        texts = [one.newest for one in followers]
        first = texts[0]
        alike = all(
            one.next_cell == followers[0].next_cell
            and one.looks == followers[0].looks
            and text.number == first.number
            and (text.parts is None) == (first.parts is None)
            and text.filled
            and all(
                mine is other or np.array_equal(mine, other)
                for mine, other in (
                    (text.cells, first.cells),
                    (text.positions, first.positions),
                    (text.ends, first.ends),
                )
            )
            for one, text in zip(followers, texts, strict=True)
        )
        if not alike:
            return None
        whole = [text.parts for text in texts if text.parts is not None]
        return cls(
            tuple(followers),
            texts,
            np.stack([text.digests for text in texts], 1),
            np.stack(whole, 2).swapaxes(0, 1) if whole else None,
            np.stack([text.lengths for text in texts]),
        )

    @property
    def stands(self) -> bool:
        """Whether no site went on by itself."""
        pairs = zip(self.followers, self.texts, strict=True)
        return all(one.newest is text for one, text in pairs)

    @property
    def rows(self) -> int:
        """Of each site, per sequence."""
        return int(self.texts[0].cells.shape[1])

    def may_start(self, start: int | None) -> bool:
        """Whether a step may begin at a position the model was told, if it was."""
        return start is None or start == int(self.texts[0].ends[0])

    def next_part(self, keys: Tensor, values: Tensor) -> int | None:
        """The part of each row that is looked at this time, as each site would say it."""
        found = [one.next_part(keys, values) for one in self.followers]
        return found[0]

    def same(self, keys: Sequence[Tensor], values: Sequence[Tensor], part: int | None) -> bool:
        """Whether all old rows are what they were, in the part that is looked at.

        Args:
            keys: That each site was given, [sequences, kv_heads, seq, dim].
            values: Of the same shape.
            part: It.
        """
        rows, dim, old = [*keys, *values], keys[0].shape[3], self.rows
        if part is not None:
            rows = [one[..., part::PARTS] for one in rows]
        now = glances([one[:, :, :old] for one in rows], dim, part)
        before = self._digests if part is None or self._parts is None else self._parts[part]
        return bool((now.reshape(before[..., :old].shape) == before[..., :old]).all())

    def grow(self, fresh: Tensor, number: int) -> tuple[RowStep, list[Text]]:
        """All sites got rows at their end.

        Args:
            fresh: Copies of them, keys first, [2 · sites · sequences, kv_heads, new, dim].
            number: Of the step.

        Returns:
            What each site did, its rows left out, and the texts as they were.
        """
        before, old, new = self.texts, self.rows, fresh.shape[2]
        seq, first, last = old + new, self.followers[0].next_cell, self.texts[0]
        self._make_room(seq)
        self._write(fresh, old)
        cells, positions = more_places(last, first, new)
        step = grown_step(last, cells, positions, first)
        ends = last.ends + new
        parts = None if self._parts is None else self._parts[..., :seq].swapaxes(0, 1)
        self.texts = [
            Text(
                self._digests[:, place, :, :seq],
                None if parts is None else parts[:, :, place],
                self._lengths[place, :, :seq],
                cells,
                positions,
                ends,
                number,
                filled=True,
            )
            for place in range(len(before))
        ]
        written = cells.shape[0] * new
        for follower, text in zip(self.followers, self.texts, strict=True):
            follower.go_on(text, written)
        return step, before

    def _write(self, fresh: Tensor, old: int) -> None:
        """Remember new rows behind the old ones."""
        _, sites, sequences, _ = self._digests.shape
        new = fresh.shape[2]
        seq = old + new
        if self._parts is None:
            whole = glances([fresh], fresh.shape[3], None)
        else:
            each = in_parts(fresh)
            self._parts[..., old:seq] = each.reshape(PARTS, 2, sites, sequences, new)
            whole = each.sum(0)
        self._digests[..., old:seq] = whole.reshape(2, sites, sequences, new)
        keys = fresh[: len(fresh) // 2]
        self._lengths[..., old:seq] = lengths(keys).reshape(sites, sequences, new)

    def _make_room(self, seq: int) -> None:
        """Longer arrays, where these are full; texts of before keep the old ones."""
        if seq <= self._digests.shape[-1]:
            return
        more = seq + ROOM
        self._digests = _padded(self._digests, more)
        self._lengths = _padded(self._lengths, more)
        if self._parts is not None:
            self._parts = _padded(self._parts, more)


def _padded(array: NDArray[_Kind], more: int) -> NDArray[_Kind]:
    """The same with room behind its last axis."""
    longer = np.zeros((*array.shape[:-1], array.shape[-1] + more), array.dtype)
    longer[..., : array.shape[-1]] = array
    return longer


def fresh_rows(keys: Sequence[Tensor], values: Sequence[Tensor], old: int) -> Tensor:
    """Copies of the rows behind the old ones, keys first."""
    return torch.cat([one[:, :, old:] for one in (*keys, *values)])
