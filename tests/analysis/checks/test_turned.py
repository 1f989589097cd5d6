"""Rotations are told from rows that are exact, and from rows as narrow types round them."""

import numpy as np
import pytest

from kvtrace.analysis.checks.scenes.relations import factor, same_numbers
from kvtrace.analysis.checks.wrong_rows.turned import rotation, shift, slope

HEADS, DIM = 4, 32
ATOL = {"float32": 2e-5, "float16": 3e-3, "bfloat16": 2e-2}


def turned(rows, places, base=10_000.0):
    """Half-split rotary embedding, written out: rows [heads, rows, dim] to their places."""
    half = rows.shape[2] // 2
    out = np.empty_like(rows)
    for row, place in enumerate(places):
        for plane in range(half):
            angle = place * base ** (-2 * plane / rows.shape[2])
            a, b = rows[:, row, plane], rows[:, row, plane + half]
            out[:, row, plane] = a * np.cos(angle) - b * np.sin(angle)
            out[:, row, plane + half] = a * np.sin(angle) + b * np.cos(angle)
    return out


def rounded(rows, dtype):
    if dtype == "bfloat16":
        bits = rows.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    return rows.astype(dtype).astype(np.float32)


def rows_of(count, seed=0):
    return np.random.default_rng(seed).standard_normal((HEADS, count, DIM)).astype(np.float32)


def atol_of(rows, dtype):
    return ATOL[dtype] * float(np.abs(rows).max())


@pytest.mark.parametrize("dtype", ATOL)
@pytest.mark.parametrize("n", [-1, 1, 2, -9, 13, -40])
def test_a_shift_by_whole_positions_is_told_in_every_dtype(dtype, n):
    rows = rows_of(1)
    right, left = turned(rows, [50]), turned(rows, [50 + n])
    atol = atol_of(right, dtype)
    turn = rotation(rounded(left, dtype), rounded(right, dtype), atol)
    assert turn is not None
    assert shift(turn, 64) == n


@pytest.mark.parametrize("dtype", ATOL)
@pytest.mark.parametrize("base", [1e4, 5e5, 1e6])
def test_the_base_of_a_shift_need_not_be_known(dtype, base):
    rows = rows_of(1, seed=3)
    right, left = turned(rows, [50], base), turned(rows, [47], base)
    atol = atol_of(right, dtype)
    turn = rotation(rounded(left, dtype), rounded(right, dtype), atol)
    assert turn is not None
    assert shift(turn, 64) == -3


@pytest.mark.parametrize("dtype", ATOL)
def test_keys_that_lost_their_rotation_are_turned_back_by_their_position(dtype):
    rows, places = rows_of(40), np.arange(40)
    right, atol = turned(rows, places), atol_of(rows, dtype)
    turn = rotation(rounded(rows, dtype), rounded(right, dtype), atol)
    assert turn is not None
    rate = slope(turn, places)
    assert rate is not None
    assert abs(rate[0] + 1) < 0.01
    assert abs(rate[1] + 10_000 ** (-2 / DIM)) < 0.01


def test_a_small_disturbance_in_a_narrow_type_is_no_rotation():
    right = rounded(rows_of(1), "bfloat16")
    atol = atol_of(right, "bfloat16")
    left = rounded(right + 3 * atol * np.sign(rows_of(1, seed=5)), "bfloat16")
    assert rotation(left, right, atol) is None


def test_a_small_disturbance_in_a_narrow_type_is_no_factor():
    right = rounded(rows_of(1), "bfloat16")
    atol = atol_of(right, "bfloat16")
    left = rounded(right * 0.95 + 2 * atol * np.sign(rows_of(1, seed=5)), "bfloat16")
    assert factor(left, right, atol) is None


def test_a_factor_is_told_in_a_narrow_type():
    right = rounded(rows_of(1), "bfloat16")
    found = factor(rounded(right * 0.9, "bfloat16"), right, atol_of(right, "bfloat16"))
    assert found == pytest.approx(0.9, abs=0.01)


def test_many_numbers_of_one_kind_are_not_the_same_numbers():
    one, other = rows_of(40, seed=1), rows_of(40, seed=2)
    atol = atol_of(one, "bfloat16")
    assert not same_numbers(one, other, atol)
    assert same_numbers(rounded(one[:, :, ::-1], "bfloat16"), rounded(one, "bfloat16"), atol)
