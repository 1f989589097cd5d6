from hypothesis import given
from hypothesis import strategies as st

from kvtrace_tui.drawing.binning import Binning


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


@given(count=st.integers(1, 5000), cells=st.integers(1, 500))
def test_every_step_has_a_column_and_every_column_a_step(count, cells):
    axis = Binning.fit(count, cells)
    assert 0 < axis.cells <= cells
    shown = [
        index for cell in range(0, axis.cells, axis.stretch) for index in axis.indices_of(cell)
    ]
    assert shown == list(range(count))
    assert all(len(axis.cells_of(index)) == axis.stretch for index in (0, count - 1))


def test_nothing_fits_into_nothing():
    assert Binning.fit(0, 10).cells == 0
    assert Binning.fit(10, 0).cells == 0
