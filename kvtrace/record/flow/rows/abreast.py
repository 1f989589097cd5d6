"""Many sites whose rows grew by the step's own: compared and remembered in one calculation.

Layers of a model mostly do the same in a decode step. What each was given was copied while the
model ran; whether its old rows are what they were, and what is to be remembered of the new ones,
is worked out for all of them together. A site whose rows did anything else is followed by itself,
from the same copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor

from kvtrace.record.flow.rows.follower import RowFollower
from kvtrace.record.flow.rows.row_step import RowStep, grown_step
from kvtrace.record.flow.rows.slots import Numbers
from kvtrace.record.flow.rows.texts import GivenRows, Text, lengths, more_places
from kvtrace.record.match import PARTS, Digests, glances, in_parts


class Copied(Struct, frozen=True, eq=False):
    """What is copied of a site's rows while the model runs.

    Attributes:
        follower: Of the site.
        given: What it was given; its keys and values are still the model's own.
        part: The part of each row that is looked at; None: all of it.
        looked: That part, [2 · sequences, kv_heads, seq, dim of it]: keys, then values; in one
            tensor or in two.
        fresh: New rows, [2 · sequences, kv_heads, new, dim]; in one tensor or in two.
    """

    follower: RowFollower
    given: GivenRows
    part: int | None
    looked: tuple[Tensor, ...]
    fresh: tuple[Tensor, ...]


def copied(follower: RowFollower, given: GivenRows, *, over: bool = False) -> Copied:
    """Copy what must be compared of a site's rows, whose keys and values have one shape.

    Args:
        follower: Of the site.
        given: What it was given.
        over: Nobody changes the rows any more before they are compared: they need no copy.
    """
    both = (given.keys, given.values)
    part = follower.next_part(*both)
    old = given.keys.shape[2] - given.new
    looked = both if part is None else tuple([rows[..., part::PARTS] for rows in both])
    fresh = tuple([rows[:, :, old:] for rows in both])
    if over:
        return Copied(follower, given, part, looked, fresh)
    whole = torch.cat(looked)
    return Copied(
        follower, given, part, (whole,), (whole[:, :, old:] if part is None else torch.cat(fresh),)
    )


def steps(sites: Sequence[Copied]) -> list[RowStep]:
    """What became of the rows of each site, as `RowFollower.step` would say it."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, site in enumerate(sites):
        rows = site.given.keys
        key = (rows.shape, rows.dtype, rows.device, site.given.new, site.part)
        groups.setdefault(key, []).append(place)
    found: dict[int, RowStep] = {}
    for places in groups.values():
        found.update(zip(places, _alike([sites[place] for place in places]), strict=True))
    return [found[place] for place in range(len(sites))]


def _alike(sites: Sequence[Copied]) -> list[RowStep]:
    """Of sites with the same shapes."""
    part, dim = sites[0].part, sites[0].given.keys.shape[3]
    now = glances([rows for site in sites for rows in site.looked], dim, part)
    looked = now.reshape(len(sites), 2, -1, now.shape[-1])
    before = np.stack([site.follower.newest.looked_at(part) for site in sites])
    grew = (looked[..., : before.shape[-1]] == before).all((1, 2, 3)).tolist()
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
    fresh = torch.cat([rows for site in sites for rows in site.fresh])
    fresh = fresh.reshape(len(sites), -1, *fresh.shape[1:])
    digests, parts, norms = _remembered(texts, fresh)
    shared: _Shared | None = None
    found = []
    sequences, new = fresh.shape[1] // 2, fresh.shape[3]
    halves = zip(fresh[:, :sequences].unbind(), fresh[:, sequences:].unbind(), strict=True)
    for place, (site, before, rows) in enumerate(zip(sites, texts, halves, strict=True)):
        first = site.follower.next_cell
        if shared is None or not shared.fits(before, first):
            shared = _Shared.after(before, first, new)
        text = Text(
            digests[place],
            None if parts is None else parts[place],
            norms[place],
            shared.step.cells,
            shared.step.positions,
            shared.ends,
            site.given.number,
            filled=True,
        )
        found.append(shared.step.with_rows(before, rows))
        site.follower.go_on(text, sequences * new)
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
        whole = glances([flat], flat.shape[3], None).reshape(sites, 2, sequences, new)
    digests = np.concatenate((np.stack([text.digests for text in texts]), whole), -1)
    keys = fresh[:, :sequences].flatten(0, 1)
    more = lengths(keys).reshape(sites, sequences, new)
    return digests, parts, np.concatenate((np.stack([text.lengths for text in texts]), more), -1)


class _Shared(Struct, frozen=True, eq=False):
    """A step that added rows to texts with the same cells and positions, as most layers' are.

    Attributes:
        before: One of the texts as it was.
        step: Without rows.
        ends: Positions after the last tokens.
    """

    before: Text
    step: RowStep
    ends: Numbers

    @classmethod
    def after(cls, before: Text, first: int, new: int) -> _Shared:
        """Of a text that gets so many rows more per sequence.

        Args:
            before: It.
            first: Number of the first new cell.
            new: Rows.
        """
        cells, positions = more_places(before, first, new)
        return cls(before, grown_step(before, cells, positions, first), before.ends + new)

    def fits(self, text: Text, first: int) -> bool:
        """Whether another text had the same cells and positions."""
        mine = self.before
        return first == self.step.first_cell and all(
            one is other or np.array_equal(one, other)
            for one, other in (
                (mine.cells, text.cells),
                (mine.positions, text.positions),
                (mine.ends, text.ends),
            )
        )
