"""Words that a learner relies on: whole sentences, kinds of attention, logits without numbers."""

import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from builders.panes import AT, drawn, row_of
from builders.screens import app_of, press, shown, until
from kvtrace.trace import TopLogits
from kvtrace_tui.panes.inspector import InspectorPane
from kvtrace_tui.panes.rows import Shelf
from kvtrace_tui.panes.sentence import SentencePane
from kvtrace_tui.panes.timeline import TimelinePane


@pytest.fixture
def unmeasured():
    """A step whose time without the cache was not measured: its sentence is longest."""
    trace = synthetic_trace()
    trace.source.lane_steps.clear()
    return trace


async def test_a_remark_gives_way_so_that_the_sentence_is_whole(one_pane, unmeasured):
    (whole,) = await drawn(one_pane, SentencePane(), unmeasured, size=(240, 1))
    assert whole.rstrip().endswith("(without the cache: not measured)")
    sentence = whole.rstrip().removesuffix(" (without the cache: not measured)")
    (cut,) = await drawn(one_pane, SentencePane(), unmeasured, size=(len(sentence) + 4, 1))
    assert cut.rstrip() == sentence


async def test_a_sentence_without_room_says_the_same_in_fewer_words(one_pane):
    trace = synthetic_trace(Shape(layers=3, heads=4, prompt=500, decode=3))
    at = replace(AT, step=2)
    (whole,) = await drawn(one_pane, SentencePane(), trace, at, size=(240, 1))
    assert "and read 501 rows from the cache: " in whole
    (shorter,) = await drawn(one_pane, SentencePane(), trace, at, (len(whole.rstrip()) - 2, 1))
    assert shorter.rstrip() == whole.rstrip().replace("501 rows from the cache", "501 cached rows")
    (least,) = await drawn(one_pane, SentencePane(), trace, at, (len(shorter.rstrip()) - 2, 1))
    assert shorter.startswith(least.rstrip())
    assert least.rstrip().endswith("ms")
    assert "…" not in least


async def test_no_line_of_a_sentence_begins_with_its_comma(one_pane):
    trace = synthetic_trace(Shape(layers=3, heads=4, prompt=500, decode=3))
    for width in range(60, 110):
        lines = await drawn(one_pane, SentencePane(), trace, replace(AT, step=2), size=(width, 3))
        assert all(line.strip()[:1] not in (",", ":") or not line.strip() for line in lines)


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (120, 36), (160, 45), (250, 70)])
async def test_every_size_of_the_screen_shows_the_sentence_to_its_end(size):
    app = app_of(synthetic_trace(Shape(layers=3, heads=4, prompt=500, decode=3)))
    async with app.run_test(size=size) as pilot:
        await press(pilot, "n")
        said = " ".join(" ".join(shown(app)[1:3]).split())
        start, _, rest = said.partition("and read 501 rows from the cache: ")
        assert start.startswith("step 2 computed 1 row of Q, K, V instead of 502")
        flops, times = rest.split(", ")[:2]
        assert "FLOP instead of" in flops
        assert "s instead of" in times or "not measured" in times


async def test_no_number_is_cut_short(one_pane):
    for width in (24, 28, 30, 32, 38, 44, 59):
        lines = await drawn(one_pane, InspectorPane(Shelf()), synthetic_trace(), AT, (width, 60))
        place = row_of(lines, "at ").split()
        assert place[-1] == "6", (width, place)
        for letter in ("K", "V", "Q"):
            last = [line for line in lines if line.strip().startswith(f"{letter} ")][-1]
            ends, _, spread = last.split(maxsplit=1)[1].strip().partition(" ")
            assert "…" in ends, (width, last)
            assert spread == "" or "±" in spread, (width, last)


async def test_logits_that_are_not_finite_are_called_that(one_pane):
    trace = synthetic_trace()
    nan = float("nan")
    top = TopLogits((2, 3), (nan, nan), nan)
    trace.source.steps[4] = replace(trace.step(4), top=(top,), chosen=(3,))
    lines = await drawn(one_pane, TimelinePane(), trace, size=(120, 4))
    assert "the logits are not finite" in lines[3]
    assert "nan" not in lines[3]


def windowed(trace):
    """All layers read a sliding window of 4 rows and share kv heads."""
    meta = trace.meta
    sites = tuple(replace(site, window=4, num_kv_heads=2) for site in meta.sites)
    trace.source.meta = replace(meta, sites=sites)
    return trace


async def test_the_inspector_says_first_what_kind_of_attention_it_is(one_pane):
    pane = InspectorPane(Shelf())
    lines = await drawn(one_pane, pane, windowed(synthetic_trace()), AT, size=(60, 24))
    assert "GQA: 4 heads on 2 kv heads · sliding window 4" in row_of(lines, "kind")


async def test_what_the_step_did_to_a_layer_is_never_cut(one_pane):
    pane = InspectorPane(Shelf())
    lines = await drawn(one_pane, pane, synthetic_trace(), AT, size=(22, 40))
    at = lines.index(row_of(lines, "did"))
    assert "+1 row, 8 → 9" in " ".join(" ".join(lines[at : at + 2]).split())


async def test_the_status_line_says_what_kind_of_attention_it_is():
    app = app_of(windowed(synthetic_trace(Shape(layers=3, heads=4, prompt=5, decode=6))))
    async with app.run_test(size=(200, 50)) as pilot:
        await press(pilot, "n")
        assert "sliding window 4" in shown(app)[0]
        assert "GQA: 4 heads on 2 kv heads" in shown(app)[0]


async def test_without_room_the_status_line_leaves_the_kind_out():
    app = app_of(windowed(synthetic_trace(Shape(layers=3, heads=4, prompt=5, decode=6))))
    async with app.run_test(size=(80, 24)) as pilot:
        await press(pilot, "n")
        assert "sliding" not in shown(app)[0]
        assert "step 2/6" in shown(app)[0]


async def test_a_long_name_of_a_trace_leaves_the_status_line_to_the_model():
    trace = synthetic_trace(Shape(layers=3, heads=4, prompt=5, decode=6))
    trace.source.name = "demo-20261128-071633-4935-again.kvt"
    app = app_of(trace)
    async with app.run_test(size=(80, 24)) as pilot:
        await press(pilot, "n")
        assert "demo-2026" not in shown(app)[0]
        assert f"  {trace.meta.model.name}  step 2/6" in shown(app)[0]
    async with app_of(trace).run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: "lanes equal" in shown(pilot.app)[0])
        assert "3L×4H(2kv) d8 f32" in shown(pilot.app)[0]
