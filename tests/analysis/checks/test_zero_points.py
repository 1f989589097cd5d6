"""Rows of few bits that lack their zero point, or a part of their scale: one says which."""

from __future__ import annotations

import numpy as np
import pytest

from kvtrace.analysis.checks.wrong_rows.inexact import inexact


def in_eight_bits(rows: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows on 256 levels from the smallest number of each group to the largest, and these."""
    low, high = rows.min(axis=axis, keepdims=True), rows.max(axis=axis, keepdims=True)
    step = (high - low) / 255
    return np.rint((rows - low) / step) * step + low, low


def named(mine: np.ndarray, rows: np.ndarray) -> tuple[str, str]:
    both = mine.astype(np.float32), rows.astype(np.float32)
    return inexact("v", *both, float(np.abs(rows).max()), 1e-5) or ("", "")


@pytest.mark.parametrize(("axis", "what"), [(2, "head of a row"), (1, "feature of a head")])
def test_rows_that_lack_their_zero_point_say_so(axis: int, what: str) -> None:
    rows = np.random.default_rng(0).standard_normal((2, 12, 8)) - 3  # no group reaches zero
    kept, low = in_eight_bits(rows, axis)
    name, evidence = named(kept - low, rows)
    assert name == "OLD-ROWS-SCALED"
    assert f"each {what} by one number: a zero point is lost, or added twice" in evidence
    assert f"{-low.max():+.3g} to {-low.min():+.3g} away" in evidence


def test_rows_that_have_their_zero_point_are_rounded_alone() -> None:
    rows = np.random.default_rng(0).standard_normal((2, 12, 8)) - 3
    assert named(in_eight_bits(rows, 2)[0], rows)[0] == "DTYPE"


def test_rows_that_rounding_moves_alike_by_chance_have_their_zero_point() -> None:
    drawn = np.random.default_rng(0)
    kept, low = in_eight_bits(drawn.standard_normal((2, 12, 8)) - 3, 2)
    step = (kept.max(axis=2, keepdims=True) - low) / 255
    right = kept - 0.4 * step + 0.05 * step * drawn.uniform(-1, 1, kept.shape)
    assert named(kept, right)[0] == "DTYPE"
