"""Sites abreast: together they remember what each would remember by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvtrace.record.flow.rows.band import Band, fresh_rows
from kvtrace.record.flow.rows.follower import RowFollower
from kvtrace.record.flow.rows.texts import GivenRows
from kvtrace.record.match import digest

SITES, DIM = 3, 32


def grown(layers, seed):
    """The keys or values of all sites with one row more, in tensors of their own."""
    more = torch.randn(SITES, 2, 2, 1, DIM, generator=torch.Generator().manual_seed(seed))
    return [torch.cat((old, new), 2) for old, new in zip(layers, more, strict=True)]


@pytest.fixture
def begun():
    """A band after three steps, and the keys and values of its sites."""
    keys = values = [torch.empty(2, 2, 0, DIM)] * SITES
    followers = [RowFollower() for _ in range(SITES)]
    for step in range(3):
        keys, values = grown(keys, 2 * step), grown(values, 2 * step + 1)
        for follower, mine, theirs in zip(followers, keys, values, strict=True):
            follower.step(GivenRows(mine, theirs, 1, number=step))
    return Band.of(followers), keys, values


def go_on(band, keys, values, number):
    """One more row of each site."""
    keys, values = grown(keys, 2 * number), grown(values, 2 * number + 1)
    part = band.next_part(keys[0], values[0])
    assert band.same(keys, values, part)
    step, _ = band.grow(fresh_rows(keys, values, band.rows), number)
    assert step.cells[0, -1] == step.first_cell
    return keys, values


def test_digests_are_those_of_every_row_however_many_there_are(begun):
    band, keys, values = begun
    for number in range(3, 150):
        keys, values = go_on(band, keys, values, number)
    assert band.rows == 150
    for place, follower in enumerate(band.followers):
        np.testing.assert_array_equal(follower.digests[0], digest(keys[place]))
        np.testing.assert_array_equal(follower.digests[1], digest(values[place]))
        assert follower.next_cell == 2 * 150


def test_a_site_goes_on_by_itself_where_the_band_left_it(begun):
    band, keys, values = begun
    keys, values = go_on(band, keys, values, 3)
    keys, values = grown(keys, 8), grown(values, 9)
    found = band.followers[1].step(GivenRows(keys[1], values[1], 1, number=4))
    assert (found.parent, found.rows, found.gone) == (3, 1, 0)
    assert found.fresh is not None
    assert not band.stands


@pytest.mark.parametrize("which", ["keys", "values"])
def test_a_changed_row_of_one_site_shows(begun, which):
    band, keys, values = begun
    keys, values = grown(keys, 6), grown(values, 7)
    {"keys": keys, "values": values}[which][2][1, 1, 0] += 1
    assert not band.same(keys, values, band.next_part(keys[0], values[0]))


def test_sites_that_wrote_at_other_steps_are_no_band(begun):
    band, keys, values = begun
    band.followers[0].step(GivenRows(*[one[0] for one in (keys, values)], 1, number=3, again=True))
    assert Band.of(band.followers) is None
