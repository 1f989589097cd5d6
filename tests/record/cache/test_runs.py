"""Runs over cells: small sums, worked out by hand."""

from __future__ import annotations

from kvtrace.record.cache import runs
from kvtrace.trace import Run


def test_written_rows_are_one_run_until_positions_jump():
    assert runs.written(5, (3, 4, 5), 0) == (Run(5, 3, 0, 3),)
    assert runs.written(5, (3, 4, 9), 2) == (Run(5, 2, 2, 3), Run(7, 1, 4, 9))
    assert runs.written(5, (), 0) == ()


def test_appending_merges_the_seam_only_if_cells_and_positions_go_on():
    held = (Run(0, 4, 0, 0),)
    assert runs.appended(held, (Run(4, 2, 0, 4),)) == (Run(0, 6, 0, 0),)
    assert runs.appended(held, (Run(9, 1, 0, 4),)) == (Run(0, 4, 0, 0), Run(9, 1, 4, 4))
    assert runs.appended(held, (Run(4, 1, 0, 7),)) == (Run(0, 4, 0, 0), Run(4, 1, 4, 7))


def test_first_and_last_rows_cut_inside_a_run():
    held = (Run(0, 4, 0, 0), Run(9, 3, 4, 4))
    assert runs.first(held, 5) == (Run(0, 4, 0, 0), Run(9, 1, 4, 4))
    assert runs.last(held, 5) == (Run(2, 2, 0, 2), Run(9, 3, 2, 4))
    assert runs.last(held, 9) == held
    assert runs.first(held, 0) == runs.last(held, 0) == ()


def test_picked_rows_join_where_they_follow_each_other():
    rows = [(0, 0), (1, 1), (5, 5), (6, 6), (6, 9)]
    assert runs.picked(rows) == (Run(0, 2, 0, 0), Run(5, 2, 2, 5), Run(6, 1, 4, 9))
    assert runs.expanded(runs.picked(rows)) == rows
