"""Many sites whose rows grew by the step's own: compared and remembered in one calculation.

Layers of a model mostly do the same in a decode step. What each was given was copied while the
model ran; whether its old rows are what they were, and what is to be remembered of the new ones,
is worked out for all of them together. A site whose rows did anything else is followed by itself,
from the same copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvtrace.record.flow.rows import RowFollower, RowStep, grown_step
from kvtrace.record.flow.slots import Numbers
from kvtrace.record.flow.texts import Given, Text, lengths
from kvtrace.record.match import PARTS, Digests, glances, in_parts


@dataclass(frozen=True, slots=True, eq=False)
class Copied:
    """What a site was given, copied while the model ran.

    Attributes:
        follower: Of the site.
        given: Its keys and values are parts of `both`.
        both: The copy, [2 · sequences, kv_heads, seq, dim]: keys, then values.
    """

    follower: RowFollower
    given: Given
    both: Tensor


def copied(follower: RowFollower, given: Given) -> Copied:
    """A copy of what a site was given, whose keys and values have the same shape."""
    both = torch.cat((given.keys, given.values))
    sequences = given.keys.shape[0]
    given = Given(
        both[:sequences],
        both[sequences:],
        given.new,
        given.visible,
        given.grown,
        given.start,
        given.pads,
        given.number,
        given.resumed,
    )
    return Copied(follower, given, both)


def steps(sites: Sequence[Copied]) -> list[RowStep]:
    """What became of the rows of each site, as `RowFollower.step` would say it."""
    groups: dict[tuple[object, ...], tuple[int | None, list[int]]] = {}
    for place, site in enumerate(sites):
        part = site.follower.next_part(site.given)
        key = (site.both.shape, site.both.dtype, site.both.device, site.given.new, part)
        groups.setdefault(key, (part, []))[1].append(place)
    found: dict[int, RowStep] = {}
    for part, places in groups.values():
        alike = [sites[place] for place in places]
        found.update(zip(places, _alike(alike, part), strict=True))
    return [found[place] for place in range(len(sites))]


def _alike(sites: Sequence[Copied], part: int | None) -> list[RowStep]:
    """Of sites with the same shapes."""
    now = glances([site.both for site in sites], part)
    looked = now.reshape(len(sites), 2, -1, now.shape[-1])
    grew = [
        site.follower.grew(site.given, mine, part) for site, mine in zip(sites, looked, strict=True)
    ]
    longer = iter(_longer([site for site, yes in zip(sites, grew, strict=True) if yes]))
    return [
        next(longer) if yes else site.follower.compared(site.given, mine, part)
        for site, mine, yes in zip(sites, looked, grew, strict=True)
    ]


def _longer(sites: Sequence[Copied]) -> list[RowStep]:
    """Of sites that were only added to: the newest text of each, longer."""
    if not sites:
        return []
    texts = [site.follower.newest for site in sites]
    old = texts[0].cells.shape[1]
    fresh = torch.stack([site.both[:, :, old:] for site in sites])
    digests, parts, lengths_ = _remembered(texts, fresh)
    shared: _Shared | None = None
    found = []
    sequences = fresh.shape[1] // 2
    for place, (site, before) in enumerate(zip(sites, texts, strict=True)):
        first = site.follower.next_cell
        if shared is None or not shared.fits(before, first):
            shared = _Shared.after(before, first, site.given.new)
        text = Text(
            digests[place],
            None if parts is None else parts[place],
            lengths_[place],
            shared.cells,
            shared.positions,
            shared.ends,
            site.given.number,
        )
        rows = fresh[place, :sequences], fresh[place, sequences:]
        step = grown_step(before, text, first, rows)
        site.follower.go_on(text, sequences * site.given.new)
        found.append(step)
    return found


def _remembered(texts: Sequence[Text], fresh: Tensor) -> tuple[Digests, Digests | None, np.ndarray]:
    """Digests, those of parts, and lengths of keys, of old rows and new, one line a site.

    Args:
        texts: Before.
        fresh: New rows, [sites, 2 · sequences, kv_heads, new, dim].
    """
    sites, both, _, new, _ = fresh.shape
    flat, sequences = fresh.flatten(0, 1), both // 2
    parts = None
    if texts[0].parts is not None:
        each = in_parts(flat).reshape(PARTS, sites, 2, sequences, new)
        whole = each.sum(0)
        lines = [text.parts for text in texts if text.parts is not None]
        parts = np.concatenate((np.stack(lines), each.transpose(1, 2, 0, 3, 4)), -1)
    else:
        whole = glances([flat], None).reshape(sites, 2, sequences, new)
    digests = np.concatenate((np.stack([text.digests for text in texts]), whole), -1)
    keys = fresh[:, :sequences].flatten(0, 1)
    more = lengths(keys).reshape(sites, sequences, new)
    return digests, parts, np.concatenate((np.stack([text.lengths for text in texts]), more), -1)


@dataclass(frozen=True, slots=True, eq=False)
class _Shared:
    """Cells and positions of a text that grew; most layers have the same ones."""

    before: Text
    first: int
    cells: Numbers
    positions: Numbers
    ends: Numbers

    @classmethod
    def after(cls, before: Text, first: int, new: int) -> _Shared:
        """Of a text that gets so many rows more per sequence."""
        sequences = before.cells.shape[0]
        cells = first + np.arange(sequences * new).reshape(sequences, new)
        positions = before.ends[:, None] + np.arange(new)
        return cls(
            before,
            first,
            np.concatenate((before.cells, cells), -1),
            np.concatenate((before.positions, positions), -1),
            before.ends + new,
        )

    def fits(self, text: Text, first: int) -> bool:
        """Whether another text had the same cells and positions."""
        mine = self.before
        return first == self.first and all(
            one is other or np.array_equal(one, other)
            for one, other in (
                (mine.cells, text.cells),
                (mine.positions, text.positions),
                (mine.ends, text.ends),
            )
        )
