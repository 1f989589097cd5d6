"""Paths of tokens and distances of rows: the parts that need no model."""

import numpy as np
import pytest

from kvtrace.record.lanes.compared.differ import apart, beyond
from kvtrace.record.lanes.paths import Paths
from kvtrace.trace import CacheEvent, CacheStep, Step


def step(number, parent, tokens, past, events=()):
    group = CacheStep((0,), 0, len(tokens[0]), (), (), past, past + len(tokens[0]))
    positions = tuple(tuple(range(past, past + len(row))) for row in tokens)
    chosen = (None,) * len(tokens)
    tokens = tuple(map(tuple, tokens))
    return Step(number, "decode", parent, tokens, positions, chosen, caches=(group,), events=events)


def followed(*steps):
    paths = Paths()
    for one in steps:
        paths.add(one)
    return paths


def spans(path):
    return [(node.step, node.sequence, node.start, node.end) for node in path.nodes]


def test_a_plain_decode_is_one_path():
    paths = followed(step(0, None, [[5, 6, 7]], 0), step(1, 0, [[8]], 3), step(2, 1, [[9]], 4))
    (path,) = paths.paths
    assert path.tokens == [5, 6, 7, 8, 9]
    assert spans(path) == [(0, 0, 0, 3), (1, 0, 3, 4), (2, 0, 4, 5)]


def test_a_rejected_draft_keeps_a_path_of_its_own():
    crop = CacheEvent("crop", (0,), (5,), (4,))
    paths = followed(
        step(0, None, [[5, 6, 7]], 0), step(1, 0, [[8, 9]], 3), step(2, 1, [[1]], 4, (crop,))
    )
    assert [path.tokens for path in paths.paths] == [[5, 6, 7, 8, 9], [5, 6, 7, 8, 1]]
    assert spans(paths.paths[1]) == [(2, 0, 4, 5)]


def test_a_beam_that_takes_over_another_goes_on_from_its_tokens():
    reorder = CacheEvent("reorder", (0,), (2,), (2,), (1, 1))
    paths = followed(step(0, None, [[5, 6], [5, 7]], 0), step(1, 0, [[8], [9]], 2, (reorder,)))
    assert [path.tokens for path in paths.paths] == [[5, 6], [5, 7, 8], [5, 7, 9]]


def test_one_reordering_told_of_layer_by_layer_is_one_reordering():
    events = tuple(CacheEvent("reorder", (layer,), (2,), (2,), (1, 0)) for layer in (0, 5))
    paths = followed(step(0, None, [[5, 6], [5, 7]], 0), step(1, 0, [[8], [9]], 2, events))
    assert [path.tokens for path in paths.paths] == [[5, 6, 9], [5, 7, 8]]


def test_a_step_that_goes_on_from_unrecorded_tokens_is_said():
    paths = followed(step(0, None, [[5]], 7))
    assert paths.unknown == [0]
    assert not paths.paths


def test_a_loop_without_cache_repeats_one_path():
    paths = followed(step(0, None, [[5, 6]], 0), step(1, 0, [[5, 6, 7]], 0))
    (path,) = paths.paths
    assert path.tokens == [5, 6, 7]
    assert spans(path) == [(0, 0, 0, 2), (1, 0, 0, 3)]


def test_distances_equal_a_loop_over_stretches():
    rng = np.random.default_rng(0)
    mine = rng.standard_normal((3, 7, 4)).astype("f4")
    theirs = (mine + 0.1 * rng.standard_normal(mine.shape)).astype("f4")
    starts = np.array([0, 4, 5])
    found = apart(mine, theirs, starts)
    limit = np.full((3, 3), 0.05, "f4")
    counts = beyond(mine, theirs, starts, limit)
    for head in range(3):
        for place, (start, end) in enumerate([(0, 4), (4, 5), (5, 7)]):
            delta = np.abs(mine[head, start:end] - theirs[head, start:end])
            assert found.max_abs[head, place] == delta.max()
            assert (found.row[head, place], found.dim[head, place]) == np.unravel_index(
                delta.argmax(), delta.shape
            )
            assert found.square[head, place] == pytest.approx((delta**2).sum(), rel=1e-5)
            assert found.reference[head, place] == np.abs(theirs[head, start:end]).max()
            assert found.count[head, place] == delta.size
            assert counts[head, place] == (delta > 0.05).sum()


def test_nan_on_one_side_is_infinitely_far_and_on_both_no_difference():
    mine, theirs = np.ones((1, 2, 2), "f4"), np.ones((1, 2, 2), "f4")
    mine[0, 0, 0] = theirs[0, 0, 0] = np.nan
    mine[0, 1, 1] = np.nan
    found = apart(mine, theirs, np.array([0, 1]))
    assert found.max_abs.tolist() == [[0.0, np.inf]]
    assert beyond(mine, theirs, np.array([0, 1]), np.ones((1, 2), "f4")).tolist() == [[0, 1]]
