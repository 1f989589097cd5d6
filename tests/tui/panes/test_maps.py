"""Maps and numbers of Q, K, V and the output."""

from itertools import product

import numpy as np
import pytest
from msgspec.structs import replace
from textual.geometry import Region

from builders import Shape, synthetic_trace
from builders.panes import damage_from
from kvtrace.analysis.rows.origin import tokens_of_rows
from kvtrace.trace import ROWS_LEFT_OUT, CacheStep, Note, Run, Tensor
from kvtrace_tui.desk.cursor import ColourScale, Cursor, View
from kvtrace_tui.drawing.depth import Depth
from kvtrace_tui.drawing.maps.numbers import exactly
from kvtrace_tui.panes import rows
from kvtrace_tui.panes.rows import RowStore, Shelf
from kvtrace_tui.panes.tensor_map import MapPane
from kvtrace_tui.panes.views import Ranges, shown

AT = Cursor(step=4, layer=1, head=3, row=6, dim=5)


async def drawn(one_pane, trace, cursor, tensor=Tensor.KEYS, size=(90, 20)):
    app = one_pane(MapPane(tensor, Shelf()))
    async with app.run_test(size=size):
        app.pane.show(trace, cursor)
        lines = app.lines()
        assert len(lines) == size[1]
        return [line for line in lines if line.strip()]


async def test_the_crosshair_reads_the_exact_number(one_pane):
    trace = synthetic_trace()
    value = trace.cache(4, 1).keys[1, 6, 5]
    lines = await drawn(one_pane, trace, AT)
    assert f"{value:+.9g}" in lines[-1]
    assert "row 6" in lines[-1]
    assert "dim 5" in lines[-1]
    assert np.float32(float(f"{value:.9g}")) == value


async def test_the_title_says_whose_rows_these_are(one_pane):
    lines = await drawn(one_pane, synthetic_trace(), AT)
    assert "K cache" in lines[0]
    assert "L1 H3 kv 1 [9×8] value" in lines[0]


async def test_range_and_pooling_are_printed_however_narrow_the_pane(one_pane):
    trace = synthetic_trace(Shape(prompt=200, dim=64))
    for width in (90, 56, 30):
        lines = await drawn(one_pane, trace, replace(AT, row=199), size=(width, 20))
        foot = " ".join(lines[-3:])
        assert "±" in foot, width
        assert "strongest" in foot, width


async def test_the_narrowest_pane_still_says_range_scale_and_pooling(one_pane):
    trace = synthetic_trace(Shape(dim=64))
    cursor = replace(AT, view=View.ABSOLUTE, scale=ColourScale.LOG)
    lines = await drawn(one_pane, trace, cursor, Tensor.QUERIES, size=(16, 12))
    assert any("≤" in line and "log" in line and "1×" in line for line in lines)


async def test_a_token_that_a_narrow_map_cuts_is_marked(one_pane):
    trace = synthetic_trace()
    token = trace.token_text(int(tokens_of_rows(trace, 4, 1)[6])).replace(" ", "·")
    cut = set()
    for width in range(10, 34, 2):
        last = (await drawn(one_pane, trace, AT, size=(width, 20)))[-1].rstrip()
        cut.add(last.endswith("…"))
        assert last.endswith("…") or token in last, width
    assert cut == {True, False}


async def test_a_row_that_was_rewritten_is_still_called_by_its_token(one_pane):
    trace = synthetic_trace()
    for key, cells in trace.source.cell_tensors.items():
        trace.source.cell_tensors[key] = np.tile(cells, (1, 3, 1))
    # the step rewrote all 8 old rows and appended one: cells 20 to 28
    runs = ((Run(20, 9, 0, 0),),)
    group = CacheStep((0, 1, 2), 20, 9, runs, runs, 8, 9, rewritten=8)
    trace.source.steps[4] = replace(trace.step(4), caches=(group,))
    del trace.source.steps[5], trace.source.steps[6]
    word = trace.token_text(trace.step(2).tokens[0][0]).replace(" ", "·")
    lines = await drawn(one_pane, trace, AT)
    assert f"row 6 {word} dim 5" in lines[-1]


async def test_the_colours_never_cut_the_number_beside_them(one_pane):
    trace = synthetic_trace(Shape(prompt=200, dim=64))
    for width in (56, 60, 64, 72, 80):
        look = replace(AT, row=199, dim=63, scale=ColourScale.LOG)
        foot = (await drawn(one_pane, trace, look, size=(width, 20)))[-1]
        assert "dim 63 " in foot, width
        assert "±" in foot, width


async def test_positions_stand_below_the_map_not_indices(one_pane):
    trace = synthetic_trace(Shape(window=4))
    lines = await drawn(one_pane, trace, replace(AT, step=5, row=1))
    assert "▲7" in " ".join(lines)
    assert "row 1 at 7" in lines[-1]


async def test_differences_between_lanes_are_named_and_judged(one_pane):
    trace = synthetic_trace()
    lines = await drawn(one_pane, trace, replace(AT, view=View.ABSOLUTE))
    assert "|cached − recomputed| rounding" in lines[0]


async def test_a_view_of_a_lane_that_is_not_there_says_so_and_draws_no_map(one_pane):
    trace = synthetic_trace()
    lines = await drawn(one_pane, trace, replace(AT, view=View.ABSOLUTE, lane="referee"))
    assert "there is no referee lane in this trace: not compared" in lines[1]
    assert len(lines) == 2
    trace.source.lane_steps.clear()
    lines = await drawn(one_pane, trace, replace(AT, view=View.RELATIVE))
    assert "this step was not compared" in lines[1]


@pytest.mark.parametrize("left_out", [True, False])
async def test_keep_rows_is_advised_only_where_rows_were_left_out_for_their_size(
    one_pane, left_out
):
    trace = synthetic_trace()
    for at, step in trace.source.lane_steps.items():
        trace.source.lane_steps[at] = replace(step, passes=())
    if left_out:
        trace.source.notes.append(Note("note", f"recomputed {ROWS_LEFT_OUT}"))
    lines = await drawn(one_pane, trace, replace(AT, view=View.ABSOLUTE), size=(160, 20))
    assert "rows are not in this trace: only its differences are" in lines[1]
    assert ("--keep-rows" in lines[1]) is left_out


async def test_numbers_show_token_and_position_of_each_row(one_pane):
    trace = synthetic_trace()
    tokens = [t for step in trace for t in step.tokens[0]]
    lines = await drawn(one_pane, trace, replace(AT, numbers=True))
    row = next(line for line in lines if line.startswith("6 "))
    assert f"{trace.cache(4, 1).keys[1, 6, 5]:+.5f}" in row
    assert len(tokens) > 6


async def test_numbers_of_many_rows_are_those_around_the_crosshair(one_pane):
    trace = synthetic_trace(Shape(prompt=500))
    lines = await drawn(one_pane, trace, replace(AT, numbers=True, row=321))
    assert any(line.startswith("321 ") for line in lines)
    assert f"{trace.cache(4, 1).keys[1, 321, 5]:+.9g}" in lines[-1]


async def test_hostile_tokens_reach_the_terminal_harmless(one_pane):
    trace = synthetic_trace()
    for number, step in trace.source.steps.items():
        trace.source.steps[number] = replace(step, tokens=((8,) * step.new,))  # ESC [2J
    for numbers in (True, False):
        lines = await drawn(one_pane, trace, replace(AT, numbers=numbers))
        assert "\x1b" not in "".join(lines)
        assert "␛[2J" in "".join(lines)


async def test_queries_are_those_of_the_step(one_pane):
    trace = synthetic_trace()
    lines = await drawn(one_pane, trace, replace(AT, step=0, query=2), Tensor.QUERIES)
    assert "[5×8]" in lines[0]
    assert f"{trace.queries(0, 1)[3, 2, 5]:+.9g}" in lines[-1]


async def test_a_click_points_at_row_and_feature(one_pane):
    trace = synthetic_trace()
    app = one_pane(MapPane(Tensor.KEYS, Shelf()))
    async with app.run_test(size=(90, 20)) as pilot:
        app.pane.show(trace, AT)
        app.lines()
        await pilot.click(offset=(5, 1))
        await pilot.pause()
        assert app.moves == [{"row": 0, "dim": 0}]
        await pilot.click(offset=(0, 0))
        await pilot.pause()
        assert len(app.moves) == 1


async def test_a_damaged_row_is_told_instead_of_shown(one_pane):
    trace = synthetic_trace()
    del trace.source.cell_tensors[1, Tensor.KEYS]
    lines = await drawn(one_pane, trace, AT)
    assert lines[0].split() == ["K"]
    assert "not recorded" in " ".join(lines[1:3])


async def test_nothing_is_drawn_again_for_a_cursor_that_shows_the_same(one_pane):
    trace = synthetic_trace()
    app = one_pane(MapPane(Tensor.KEYS, Shelf()))
    async with app.run_test(size=(90, 20)):
        app.pane.show(trace, AT)
        app.lines()
        before = app.pane._lines
        app.pane.show(trace, replace(AT, query=0))
        app.lines()
        assert app.pane._lines is before
        app.pane.show(trace, replace(AT, dim=2))
        app.lines()
        assert app.pane._lines is not before


@pytest.mark.parametrize("depth", list(Depth))
async def test_every_terminal_gets_lines_of_the_right_size_with_a_style(one_pane, depth):
    trace = synthetic_trace()
    app = one_pane(MapPane(Tensor.VALUES, Shelf()))
    async with app.run_test(size=(64, 15)):
        app.pane.depth = depth
        app.pane.show(trace, AT)
        strips = app.pane.render_lines(Region(0, 0, 64, 15))
        assert [strip.cell_length for strip in strips] == [64] * 15
        assert all(segment.style is not None for strip in strips for segment in strip)
        if depth is Depth.NONE:
            assert all(segment.style.color is None for strip in strips for segment in strip)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (12, 4), (300, 3)])
async def test_any_size_is_filled(one_pane, size):
    for numbers in (False, True):
        await drawn(one_pane, synthetic_trace(), replace(AT, numbers=numbers), size=size)


def test_a_nan_is_said_and_what_was_not_compared_is_not_called_nan():
    assert exactly(float("nan"), absent=False) == "NaN"
    assert exactly(float("nan"), absent=True) == "not compared"
    assert exactly(float("-inf"), absent=False) == "-Inf"


def test_the_range_stays_put_from_step_to_step():
    trace = synthetic_trace(Shape(prompt=5, decode=12))
    store, ranges = RowStore(trace), Ranges()
    highs = set()
    for number in trace.numbers:
        cursor = Cursor(step=number, layer=1, head=2)
        seen = shown(store, Tensor.KEYS, cursor)
        highs.add(ranges.shade(store, Tensor.KEYS, cursor, seen).high)
    assert len(highs) == 1


@pytest.mark.parametrize("ahead", [3, 4096])
@pytest.mark.parametrize("scale", list(ColourScale))
@pytest.mark.parametrize("window", [None, 4])
def test_the_range_depends_on_the_cursor_alone_not_on_what_was_seen(
    window, scale, ahead, monkeypatch
):
    monkeypatch.setattr(rows, "LOOK_AHEAD", ahead)
    trace = synthetic_trace(Shape(decode=9, window=window))
    for layer in trace.source.cell_tensors.values():
        layer *= np.arange(1, layer.shape[1] + 1, dtype=np.float32)[None, ::-1, None]
    store, ranges = RowStore(trace), Ranges()
    for step in (9, 3, 0, 6, 1, 4):
        for view, tensor in product((View.VALUE, View.ABSOLUTE), Tensor):
            cursor = Cursor(step=step, layer=1, head=2, view=view, scale=scale)
            anew = RowStore(trace)
            of_seen = ranges.shade(store, tensor, cursor, shown(store, tensor, cursor))
            assert of_seen == Ranges().shade(anew, tensor, cursor, shown(anew, tensor, cursor))


def test_a_damaged_cell_beside_those_shown_changes_no_range_with_what_was_seen():
    trace = synthetic_trace(Shape(decode=6))
    damage_from(trace, cell=9)
    store, ranges = RowStore(trace), Ranges()
    for step in (4, 1, 3):
        cursor = Cursor(step=step, layer=1, head=2)
        anew = RowStore(trace)
        of_seen = ranges.shade(store, Tensor.KEYS, cursor, shown(store, Tensor.KEYS, cursor))
        seen = shown(anew, Tensor.KEYS, cursor)
        assert of_seen == Ranges().shade(anew, Tensor.KEYS, cursor, seen)


def test_rounding_is_dark_because_the_range_reaches_the_tolerance():
    trace = synthetic_trace()
    store = RowStore(trace)
    cursor = replace(AT, view=View.RELATIVE, scale=ColourScale.LINEAR)
    seen = shown(store, Tensor.KEYS, cursor)
    shade = Ranges().shade(store, Tensor.KEYS, cursor, seen)
    assert shade.high >= 2e-5
    assert shade.levels(seen.values, 32).max() == 0


async def test_what_the_cache_keeps_is_shown_on_the_same_position(one_pane):
    trace = synthetic_trace(Shape(prompt=5, decode=4, window=4))
    rows = trace.cache_step(4, 1)
    attended = sum(run.count for run in rows.attended[0])
    held = sum(run.count for run in rows.kept[0])
    at = replace(AT, step=4, layer=1, row=attended - 1, dim=0, view=View.VALUE)
    before = await drawn(one_pane, trace, at)
    after = await drawn(one_pane, trace, replace(at, kept=True))
    assert f"[{attended}×8]" in before[0]
    assert "K kept" in after[0]
    assert f"[{held}×8] after the step" in after[0]
    value = float(trace.cache(4, 1).keys[1, attended - 1, 0])
    assert f"{value:+.9g}" in before[-1] + before[-2]
    assert f"{value:+.9g}" in after[-1] + after[-2]


async def test_slots_stand_below_positions_where_the_two_part(one_pane):
    trace = synthetic_trace(Shape(prompt=5, decode=4, window=4))
    at = replace(AT, step=4, layer=1, row=1, dim=0, view=View.VALUE)
    lines = await drawn(one_pane, trace, at)
    places = next(i for i, line in enumerate(lines) if line.startswith("pos"))
    assert lines[places].split() == ["pos", "5", "▲6", "7", "8"]
    assert lines[places + 1].split() == ["slot", "0", "▲1", "2", "3"]
    assert lines[places].index("7") == lines[places + 1].index("2")
    assert not any(line.startswith("slot") for line in await drawn(one_pane, synthetic_trace(), AT))


async def test_the_title_tells_kinds_of_difference_apart_where_there_is_little_room(one_pane):
    trace = synthetic_trace()
    said = {
        view: (await drawn(one_pane, trace, replace(AT, view=view), size=(43, 12)))[0]
        for view in (View.ABSOLUTE, View.RELATIVE)
    }
    assert said[View.ABSOLUTE].rstrip().endswith("[9×8] |Δ| ✓")
    assert said[View.RELATIVE].rstrip().endswith("[9×8] Δ rel. ✓")
