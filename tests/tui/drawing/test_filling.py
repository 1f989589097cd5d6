import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrace_tui.drawing.maps.filling import Filling, room_for
from kvtrace_tui.drawing.maps.pool import pooled, pooling_label


def test_few_indices_fill_all_cells():
    axis = Filling.fit(24, 40)
    assert axis.cells == 40
    assert axis.widths().tolist().count(1) + 2 * axis.widths().tolist().count(2) == 40
    assert list(axis.cells_of(0)) == [0]
    assert list(axis.cells_of(23)) == [38, 39]


def test_many_indices_fill_all_cells():
    axis = Filling.fit(100, 64)
    assert axis.cells == 64
    assert axis.sizes == "1–2"
    assert axis.edges()[[0, -1]].tolist() == [0, 100]


def test_one_row_is_not_stretched_beyond_what_is_useful():
    assert Filling.fit(1, 90).cells == 12


def test_an_axis_that_grows_leaves_a_little_room():
    assert [room_for(n) for n in (1, 8, 9, 39, 978)] == [1, 8, 10, 40, 1024]
    assert all(n <= room_for(n) <= 1.25 * n for n in range(8, 5000))


@pytest.mark.parametrize("count", [49, 500])
def test_an_appended_row_changes_the_last_cells_only(count):
    before = Filling.fit(count, 90, grows=True)
    after = Filling.fit(count + 1, 90, grows=True)
    same = before.cells - 1
    assert [before.indices_of(c) for c in range(same)] == [after.indices_of(c) for c in range(same)]


def test_a_small_move_of_the_focus_leaves_the_window_where_it_is():
    windows = {Filling.fit(1000, 100, zoom=4, focus=f).first for f in range(497, 527)}
    assert len(windows) == 1


@given(
    count=st.integers(1, 5000),
    cells=st.integers(1, 500),
    zoom=st.integers(0, 12),
    focus=st.integers(-5, 6000),
    grows=st.booleans(),
)
def test_every_cell_shows_something_and_the_focus_is_always_shown(count, cells, zoom, focus, grows):
    axis = Filling.fit(count, cells, grows=grows, zoom=zoom, focus=focus)
    inside = min(max(focus, 0), count - 1)
    assert 0 < axis.cells <= cells
    assert axis.widths().sum() == axis.cells
    assert axis.cells_of(inside)
    assert all(inside in axis.indices_of(cell) for cell in axis.cells_of(inside))
    shown = [index for cell in range(axis.cells) for index in axis.indices_of(cell)]
    assert list(dict.fromkeys(shown)) == list(range(axis.first, axis.stop))


def test_nothing_fits_into_nothing():
    for axis in (Filling.fit(0, 10), Filling.fit(10, 0)):
        assert (axis.cells, axis.bins) == (0, 0)


def test_the_strongest_value_keeps_its_sign():
    values = np.array([[1, -3, 2, 2], [0, 1, -1, 1]], np.float32)
    down, across = Filling.fit(2, 1), Filling.fit(4, 2)
    assert pooled(values, down, across).tolist() == [[-3.0, 2.0]]
    assert pooling_label(down, across) == "strongest of 2×2"


def test_a_nan_is_never_pooled_away():
    values = np.array([[1.0, np.nan, 2.0, 3.0]], np.float32)
    assert np.isnan(pooled(values, Filling.fit(1, 1), Filling.fit(4, 2))).tolist() == [
        [True, False]
    ]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.integers(1, 20))
def test_pooling_equals_the_slow_way(height, width, rows, columns):
    rng = np.random.default_rng(height * 61 + width)
    values = rng.standard_normal((height, width)).astype(np.float32)
    down, across = Filling.fit(height, rows), Filling.fit(width, columns)
    slow = [
        [
            max(
                (values[y, x] for y in down.indices_of(r) for x in across.indices_of(c)),
                key=lambda v: (abs(v), v),
            )
            for c in range(across.cells)
        ]
        for r in range(down.cells)
    ]
    found = pooled(values, down, across)
    found = np.repeat(np.repeat(found, down.widths(), axis=0), across.widths(), axis=1)
    assert found.tolist() == pytest.approx(np.array(slow))


def test_unpooled_maps_say_nothing_about_pooling():
    axis = Filling.fit(5, 20)
    assert pooling_label(axis, axis) == ""
