"""Grid, attention, inspector, cost and sentence, as text."""

from itertools import chain

import numpy as np
import pytest
from msgspec.structs import replace
from textual.geometry import Region

from builders import Shape, synthetic_trace
from builders.panes import AT, drawn, row_of
from builders.screens import until
from kvtrace import units
from kvtrace.analysis.cost import costs
from kvtrace.analysis.heads.attention import attention
from kvtrace.analysis.heads.grid import Measure, grid
from kvtrace_tui.desk.cursor import View
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.depth import Depth
from kvtrace_tui.found import Found
from kvtrace_tui.panes import all_panes, cost
from kvtrace_tui.panes.attention import AttentionPane
from kvtrace_tui.panes.cost import CostPane
from kvtrace_tui.panes.grid import GridPane
from kvtrace_tui.panes.pane import broken
from kvtrace_tui.panes.rows import Shelf
from kvtrace_tui.panes.sentence import SentencePane
from kvtrace_tui.panes.timeline import TimelinePane

# -- sentence ------------------------------------------------------------------------------------


def test_a_number_is_never_parted_from_its_unit():
    said = [("It took ", ink.TEXT), ("5.79 ms", ink.CACHED), (", read 114 KiB.", ink.TEXT)]
    rows = ["".join(words for words, _ in row).strip() for row in broken(said, 14, indent=0)]
    assert rows == ["It took", "5.79 ms, read", "114 KiB."]


async def test_the_sentence_is_wrapped_between_words(one_pane):
    lines = await drawn(one_pane, SentencePane(), synthetic_trace(), size=(60, 3))
    said = " ".join(line.strip() for line in lines)
    assert "step 4 computed 1 row of Q, K, V instead of 9 and read 8 rows from the cache" in said


async def test_a_sentence_that_has_no_room_says_so(one_pane):
    lines = await drawn(one_pane, SentencePane(), synthetic_trace(), size=(40, 1))
    assert lines[0].rstrip() == " step 4 computed 1 row of Q, K, V …"


async def test_a_finding_that_is_cut_says_so(one_pane):
    for width in range(12, 80, 3):
        pane = SentencePane()
        pane.tell((Found(4, "POSITION-ROPE", "queries are rotated", grave=True),))
        lines = await drawn(one_pane, pane, synthetic_trace(), size=(width, 1))
        whole = "queries are rotated" in lines[0]
        assert whole or lines[0].rstrip().endswith("…"), width


async def test_a_finding_is_told_in_fewer_words_before_it_is_cut(one_pane):
    found = Found(
        step=4, name="WRITE-POSITION", said="row 9 is in slot 10", layer=1, tensor="k", slot=10,
        means="the new row stands in another slot than its position", grave=True,
    )  # fmt: skip
    seen = {}
    for width in (140, 110, 42):
        pane = SentencePane()
        pane.tell((found,))
        (line,) = await drawn(one_pane, pane, synthetic_trace(), AT, size=(width, 1))
        seen[width] = line.strip().removeprefix("✗ WRITE-POSITION")
    assert seen[140].startswith(" at step 4, layer 1, k, slot 10: the new row stands in another")
    assert seen[110].startswith(" in k, slot 10: the new row stands in another slot")
    assert seen[42] == ": row 9 is in slot 10"
    assert all(said.endswith("row 9 is in slot 10") for said in seen.values())


async def test_a_banner_stands_before_the_sentence(one_pane):
    trace = synthetic_trace()
    meta = trace.source.meta
    trace.source.meta = replace(meta, model=replace(meta.model, banner="weights were missing"))
    lines = await drawn(one_pane, SentencePane(), trace, size=(200, 1))
    assert lines[0].strip().startswith("weights were missing · step 4")


# -- grid ----------------------------------------------------------------------------------------


async def test_the_grid_reads_the_number_of_the_cursors_head(one_pane):
    trace = synthetic_trace()
    expected = grid(trace, 4, Measure.ENTROPY)[1, 3]
    app = one_pane(GridPane(Shelf()))
    async with app.run_test(size=(32, 8)) as pilot:
        app.pane.show(trace, AT)
        await pilot.pause(0.2)
        lines = app.lines()
    assert "entropy" in lines[0]
    assert lines[-3:][0].strip() or lines[-2].strip()
    assert any(line.rstrip().endswith(f"L1 H3 {expected:.3g}") for line in lines)


async def test_every_measure_can_be_shown(one_pane):
    trace = synthetic_trace()
    app = one_pane(GridPane(Shelf()))
    async with app.run_test(size=(50, 8)) as pilot:
        app.pane.show(trace, AT)
        seen = set()
        for _ in Measure:
            seen.add(app.pane.next_measure())
            await pilot.pause(0.05)
            assert app.pane.measure.value in app.lines()[0]
    assert seen == set(Measure)


async def test_comparing_lanes_shows_where_they_differ(one_pane):
    lines = await drawn(
        one_pane, GridPane(Shelf()), synthetic_trace(), replace(AT, view=View.ABSOLUTE)
    )
    assert "difference of lanes" in lines[0]
    narrow = await drawn(
        one_pane, GridPane(Shelf()), synthetic_trace(), replace(AT, view=View.ABSOLUTE), (33, 12)
    )
    number = next(line for line in lines if " log " in line).split()[-1]
    assert next(line for line in narrow if " log " in line).split()[-3:] == ["L1", "H3", number]


async def test_a_click_in_the_grid_chooses_layer_and_head(one_pane):
    trace = synthetic_trace()
    app = one_pane(GridPane(Shelf()))
    async with app.run_test(size=(32, 8)) as pilot:
        app.pane.show(trace, AT)
        await pilot.pause()
        app.lines()
        await pilot.click(offset=(2, 2))
        await pilot.pause()
    assert app.moves == [{"layer": 0, "head": 0}]


async def test_a_grid_that_takes_long_is_completed_after_the_frame(one_pane):
    trace = synthetic_trace()
    pane = GridPane(Shelf())
    pane._expected_s = 1e9
    app = one_pane(pane)
    async with app.run_test(size=(32, 8)) as pilot:
        pane.show(trace, AT)
        app.lines()
        work = next(iter(pane._works.values()))
        assert not work.complete
        while not work.complete:
            await pilot.pause(0.01)
        await pilot.pause()
        expected = grid(trace, 4, Measure.ENTROPY)
        assert np.allclose(work.tables[Measure.ENTROPY], expected, atol=1e-5)


# -- attention -----------------------------------------------------------------------------------


async def test_the_strongest_row_comes_first_with_its_exact_weight(one_pane):
    trace = synthetic_trace()
    found = attention(trace, 4, 1, 3)
    lines = await drawn(one_pane, AttentionPane(Shelf()), trace)
    first = found.top(1)[0]
    listed = [line for line in lines if units.weight(float(found.weights[first])) in line]
    assert listed[0].split()[0] == str(found.positions[first])
    assert f"entropy {found.entropy:.2f} bits of 9 rows" in " ".join(lines)


async def test_rows_behind_the_mask_are_called_masked_and_not_counted(one_pane):
    trace = synthetic_trace()
    lines = await drawn(one_pane, AttentionPane(Shelf()), trace, replace(AT, step=0, query=1))
    assert "bits of 2 rows, 3 masked" in lines[1]
    assert sum(line.rstrip().endswith("masked") for line in lines[2:]) >= 3


async def test_what_followed_the_asking_token_before_has_its_weight_whole(one_pane):
    trace = synthetic_trace(Shape(prompt=60))
    found = attention(trace, 4, 1, 3)
    share = units.weight(found.induction)
    for width, words in ((60, "·key"), (29, "·key"), (27, "·…")):
        lines = await drawn(one_pane, AttentionPane(Shelf()), trace, size=(width, 24))
        assert lines[2].rstrip() == f" after an earlier {words} {share}", width


async def test_rows_around_the_crosshair_are_in_order(one_pane):
    lines = await drawn(one_pane, AttentionPane(Shelf()), synthetic_trace(Shape(prompt=60)))
    start = next(i for i, line in enumerate(lines) if "around the crosshair" in line)
    positions = [int(line.split()[0]) for line in lines[start + 1 :] if line.strip()]
    assert positions == list(range(2, 11))


async def test_the_crosshairs_row_is_listed_even_when_it_is_weak_and_room_is_short(one_pane):
    trace = synthetic_trace(Shape(prompt=60))
    weakest = int(attention(trace, 4, 1, 3).weights.argmin())
    lines = await drawn(
        one_pane, AttentionPane(Shelf()), trace, replace(AT, row=weakest), size=(60, 10)
    )
    assert lines[-1].split()[0] == str(weakest)


async def test_a_click_on_a_listed_row_moves_the_crosshair(one_pane):
    trace = synthetic_trace()
    app = one_pane(AttentionPane(Shelf()))
    async with app.run_test(size=(60, 24)) as pilot:
        app.pane.show(trace, AT)
        lines = app.lines()
        strongest = attention(trace, 4, 1, 3).top(1)[0]
        y = next(i for i, line in enumerate(lines) if line.split()[:1] == [str(strongest)])
        await pilot.click(offset=(3, y))
        await pilot.pause()
    assert app.moves == [{"row": strongest}]


# -- cost ----------------------------------------------------------------------------------------


async def test_rows_are_held_against_rows_and_not_against_the_room_for_more(one_pane):
    trace = synthetic_trace()  # 3 layers, 2 kv heads of 8; after step 4 they hold 9 rows
    step = trace.step(4)
    roomy = replace(step, cost=replace(step.cost, cache_bytes=1 << 17))
    first = (await drawn(one_pane, CostPane(), trace, size=(160, 12)))[0]
    assert "cache 3.38 KiB (6.75 KiB if every head had its own K and V) · reads" in first
    trace.source.steps[4] = roomy
    first = (await drawn(one_pane, CostPane(), trace, size=(160, 12)))[0]
    assert "cache 128 KiB, its rows 3.38 KiB (6.75 KiB if every head had" in first


async def test_cost_shows_this_step_and_all_so_far_in_both_lanes(one_pane):
    lines = await drawn(one_pane, CostPane(), synthetic_trace(), size=(150, 12))
    assert "cached 17.3 kFLOP  recomputed 151 kFLOP  8.76×" in row_of(lines, "step")
    assert "0.90 ms / 1.30 ms  1.44×" in row_of(lines, "step")
    assert "cached" in row_of(lines, "so far")
    assert any("fewer FLOPs, 1.4× less time" in line for line in lines)
    assert any("MLP" in line and "8.19 kFLOP" in line for line in lines)


@pytest.mark.parametrize("size", [(160, 9), (120, 12), (80, 14), (220, 10)])
async def test_every_part_of_a_step_is_shown_where_the_pane_has_its_usual_size(one_pane, size):
    trace = synthetic_trace()
    lines = await drawn(one_pane, CostPane(), trace, size=size)
    for part in costs.step_cost(trace, AT.step).parts:
        if part.recomputed:
            found = next(line for line in lines if part.title in line)
            assert units.flops(part.cached) in found, part
            assert units.flops(part.recomputed) in found, part
    assert "0.90 ms / 1.30 ms" in row_of(lines, "step")


async def test_a_number_that_does_not_fit_is_left_out_and_never_cut(one_pane):
    wide = row_of(await drawn(one_pane, CostPane(), synthetic_trace(), size=(150, 12)), "step")
    for width in range(41, 90, 4):
        lines = await drawn(one_pane, CostPane(), synthetic_trace(), size=(width, 12))
        narrow = row_of(lines, "step").rstrip()
        assert wide.startswith(narrow)
        assert wide[len(narrow)] == " "


async def test_flops_that_were_not_counted_are_not_drawn_as_zero(one_pane):
    trace = synthetic_trace()
    for number, step in trace.source.steps.items():
        trace.source.steps[number] = replace(step, cost=type(step.cost)())
    lines = await drawn(one_pane, CostPane(), trace, size=(150, 12))
    assert any("FLOPs were not counted" in line for line in lines)


async def test_times_of_a_long_run_are_added_up_little_by_little(one_pane, monkeypatch):
    monkeypatch.setattr(cost, "_TIMES_AT_ONCE", 2)
    trace = synthetic_trace()
    app = one_pane(CostPane())
    async with app.run_test(size=(150, 12)) as pilot:
        app.pane.show(trace, replace(AT, step=trace.numbers[-1]))
        assert "(recomputed: being added up)" in row_of(app.lines(), "so far")
        await until(pilot, lambda: "9.10 ms" in row_of(app.lines(), "so far"))


async def test_a_click_on_a_column_goes_to_its_step(one_pane):
    trace = synthetic_trace()
    app = one_pane(CostPane())
    async with app.run_test(size=(160, 12)) as pilot:
        app.pane.show(trace, AT)
        app.lines()
        await pilot.click(offset=(12 * 2 + 1, 4))
        await pilot.pause()
    assert app.moves == [{"step": 2}]


# -- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [Depth.TRUE, Depth.XTERM, Depth.ANSI, Depth.NONE])
@pytest.mark.parametrize("size", [(1, 1), (20, 5), (38, 24), (200, 60)])
async def test_every_pane_fills_any_size_in_any_terminal(one_pane, depth, size):
    trace = synthetic_trace()
    for pane in chain(*all_panes()):
        app = one_pane(pane)
        async with app.run_test(size=size):
            pane.depth = depth
            pane.light(True)
            for cursor in (AT, replace(AT, step=0, view=View.RELATIVE, inside=True, numbers=True)):
                pane.show(trace, cursor)
                strips = pane.render_lines(Region(0, 0, *size))
                assert [strip.cell_length for strip in strips] == [size[0]] * size[1]
                assert all(segment.style is not None for strip in strips for segment in strip)
                assert "\x1b" not in "".join(strip.text for strip in strips)


async def test_panes_that_follow_a_growing_trace_show_new_steps(one_pane):
    trace = synthetic_trace()
    last = trace.source.steps.pop(6)
    app = one_pane(TimelinePane())
    async with app.run_test(size=(100, 4)):
        app.pane.show(trace, replace(AT, step=5))
        before = app.lines()[2]
        trace.source.steps[6] = last
        app.pane.show(trace, replace(AT, step=5))
        assert app.lines()[2] != before


async def test_weights_are_called_cached_where_the_maps_show_another_lane(one_pane):
    app = one_pane(AttentionPane(Shelf()))
    async with app.run_test(size=(60, 24)):
        app.pane.show(synthetic_trace(), AT)
        assert "cached" not in app.lines()[0]
        app.pane.show(app.pane._trace, replace(AT, view=View.RECOMPUTED))
        assert app.lines()[0].startswith(" attention  cached L1 H3")
