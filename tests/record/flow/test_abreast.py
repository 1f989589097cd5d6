"""Sites followed together say what each of them says when it is followed alone."""

import numpy as np
import pytest
import torch

from kvtrace.record.flow.rows.abreast import copied, steps
from kvtrace.record.flow.rows.follower import GivenRows, RowFollower

SHAPES = [(4, 6), (64, 300)]
"""(features, rows): looked at whole, and in turns."""


def rows(count, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 2, count, dim, generator=generator) for _ in range(2))


def grown(pair, seed):
    more = rows(1, pair[0].shape[3], seed)
    return tuple(torch.cat(both, 2) for both in zip(pair, more, strict=True))


def changed(pair, slot):
    keys, values = (x.clone() for x in pair)
    keys[1, :, slot] += 1
    return keys, values


def followers(pairs):
    """One for each site, which has been given its first rows."""
    found = []
    for keys, values in pairs:
        follower = RowFollower()
        follower.step(GivenRows(keys, values, keys.shape[2], number=0))
        found.append(follower)
    return found


def assert_same(one, other):
    for name in ("cells", "positions", "slots", "written", "origin", "taken", "at"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    for name in ("first_cell", "parent", "before", "computed", "new", "gone", "again"):
        assert getattr(one, name) == getattr(other, name), name
    for mine, theirs in zip(one.fresh or (), other.fresh or (), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("dim", "count"), SHAPES)
def test_layers_that_grew_and_one_that_also_changed_are_told_apart_in_the_same_step(dim, count):
    pairs = [rows(count, dim, seed) for seed in range(4)]
    together, alone = followers(pairs), followers(pairs)
    for number in range(1, 12):
        pairs = [grown(pair, 100 * number + site) for site, pair in enumerate(pairs)]
        if number == 9:
            pairs[2] = changed(pairs[2], 3)
        given = [GivenRows(*pair, 1, number=number) for pair in pairs]
        found = steps([copied(*one) for one in zip(together, given, strict=True)])
        expected = [site.step(one) for site, one in zip(alone, given, strict=True)]
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
        assert all(step.fresh is not None for site, step in enumerate(found) if site != 2)
    assert [site.next_cell for site in together] == [site.next_cell for site in alone]


def test_a_row_that_changed_in_one_layer_is_written_again_there_alone():
    pairs = [rows(6, 4, seed) for seed in range(3)]
    sites = followers(pairs)
    pairs = [grown(pair, site) for site, pair in enumerate(pairs)]
    pairs[1] = changed(pairs[1], 3)
    given = [GivenRows(*pair, 1, number=1) for pair in pairs]
    found = steps([copied(*one) for one in zip(sites, given, strict=True)])
    assert [step.rows for step in found] == [1, 2, 1]
    assert found[1].written[1].tolist() == [3, 6]
