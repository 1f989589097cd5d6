import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrace_tui.drawing.binning import Binning
from kvtrace_tui.drawing.pool import Pooling, pooled, pooling_label


def test_few_indices_are_stretched():
    axis = Binning.fit(14, 90)
    assert (axis.stretch, axis.per_cell, axis.cells) == (6, 1, 84)
    assert list(axis.cells_of(2)) == [12, 13, 14, 15, 16, 17]
    assert list(axis.indices_of(17)) == [2]


def test_many_indices_are_pooled():
    axis = Binning.fit(978, 90)
    assert (axis.stretch, axis.per_cell, axis.cells) == (1, 11, 89)
    assert list(axis.cells_of(977)) == [88]
    assert list(axis.indices_of(88)) == list(range(968, 978))


def test_an_appended_row_changes_the_last_bin_only():
    before, after = Binning.fit(500, 90), Binning.fit(501, 90)
    assert [before.indices_of(c) for c in range(83)] == [after.indices_of(c) for c in range(83)]


def test_zoom_keeps_the_focus_in_view():
    axis = Binning.fit(978, 90, zoom=2, focus=500)
    assert axis.per_cell == 3
    assert 500 in range(axis.first, axis.stop)


def test_a_small_move_of_the_focus_leaves_the_window_where_it_is():
    windows = {Binning.fit(1000, 100, zoom=4, focus=f).first for f in range(500, 550)}
    assert len(windows) == 1


@given(
    count=st.integers(1, 5000),
    cells=st.integers(1, 500),
    zoom=st.integers(0, 12),
    focus=st.integers(-5, 6000),
)
def test_every_cell_shows_something_and_the_focus_is_always_shown(count, cells, zoom, focus):
    axis = Binning.fit(count, cells, zoom=zoom, focus=focus)
    inside = min(max(focus, 0), count - 1)
    assert 0 < axis.cells <= cells
    assert len(axis.cells_of(inside)) == axis.stretch
    assert all(inside in axis.indices_of(cell) for cell in axis.cells_of(inside))
    shown = [
        index for cell in range(0, axis.cells, axis.stretch) for index in axis.indices_of(cell)
    ]
    assert shown == list(range(axis.first, axis.stop))


def test_nothing_fits_into_nothing():
    assert Binning.fit(0, 10).cells == 0
    assert Binning.fit(10, 0).cells == 0


def test_the_strongest_value_keeps_its_sign():
    values = np.array([[1, -3, 2, 2], [0, 1, -1, 1]], np.float32)
    down, across = Binning(0, 2, 2, 1), Binning(0, 4, 2, 1)
    assert pooled(values, down, across).tolist() == [[-3.0, 2.0]]
    assert pooled(values, down, across, Pooling.MEAN).tolist() == [[-0.25, 1.0]]
    assert pooling_label(down, across) == "strongest of 2×2"


def test_a_nan_is_never_pooled_away():
    values = np.array([[1.0, np.nan, 2.0, 3.0]], np.float32)
    down, across = Binning.fit(1, 1), Binning(0, 4, 2, 1)
    assert np.isnan(pooled(values, down, across)).tolist() == [[True, False]]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.integers(1, 20))
def test_pooling_equals_the_slow_way(height, width, rows, columns):
    rng = np.random.default_rng(height * 61 + width)
    values = rng.standard_normal((height, width)).astype(np.float32)
    down, across = Binning.fit(height, rows), Binning.fit(width, columns)
    slow = [
        [
            max(
                (values[y, x] for y in down.indices_of(r) for x in across.indices_of(c)),
                key=lambda v: (abs(v), v),
            )
            for c in range(0, across.cells, across.stretch)
        ]
        for r in range(0, down.cells, down.stretch)
    ]
    assert pooled(values, down, across).tolist() == pytest.approx(np.array(slow))


def test_unpooled_maps_say_nothing_about_pooling():
    axis = Binning.fit(5, 20)
    assert pooling_label(axis, axis) == ""
