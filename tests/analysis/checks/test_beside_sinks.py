"""Scores that are bent or scaled beside a learned sink, which takes a share of its own."""

from __future__ import annotations

import numpy as np

from kvtrace.analysis.checks.scenes.query import Query
from kvtrace.analysis.checks.wrong_output.one_number import bent

HEADS, ROWS, DIM = 3, 7, 4


def weights(scores: np.ndarray, sinks: np.ndarray) -> np.ndarray:
    """Softmax with a column more, whose share is left out: one head, one row at a time."""
    out = np.empty_like(scores)
    for head in range(len(scores)):
        total = np.exp(sinks[head]) + sum(np.exp(score) for score in scores[head])
        for row in range(scores.shape[1]):
            out[head, row] = np.exp(scores[head, row]) / total
    return out


def asked(right: np.ndarray, mine: np.ndarray, raw: np.ndarray, sinks: np.ndarray) -> Query:
    """The query of which `right` are the scores, and `mine` those of the cached lane."""
    values = np.random.default_rng(1).standard_normal((HEADS, ROWS, DIM))
    shares = weights(right, sinks), weights(mine, sinks)
    made = [np.einsum("hr,hrd->hd", share, values) for share in shares]
    return Query(np.log(shares[0]), raw, values, made[1], made[0], np.arange(ROWS), 1e-6, sinks)


def drawn() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return 3 * random.standard_normal((HEADS, ROWS)), random.standard_normal(HEADS)


def test_a_cap_that_is_forgotten_is_told_beside_a_sink() -> None:
    raw, sinks = drawn()
    name, _, evidence = bent(asked(4 * np.tanh(raw / 4), raw, raw, sinks)) or ("", "", "")
    assert (name, evidence) == ("SCORE-NONLINEAR", "the cached lane uses q·k·scale without the cap")


def test_a_scale_that_is_forgotten_is_told_beside_a_sink() -> None:
    raw, sinks = drawn()
    name, _, evidence = bent(asked(raw, 2 * raw, raw, sinks)) or ("", "", "")
    assert (name, evidence) == ("SCALE", "q·k is scaled by 2 × as much as when recomputed")


def test_a_sink_that_grows_is_no_other_scale() -> None:
    raw, sinks = drawn()
    one = asked(raw, raw, raw, sinks)
    values, grown = one.values, weights(raw, sinks + 1)
    other = Query(
        one.logits,
        raw,
        values,
        np.einsum("hr,hrd->hd", grown, values),
        one.right,
        one.places,
        1e-6,
        sinks,
    )
    assert bent(other) is None
