"""The inspector: exact numbers, and how far the lanes are apart."""

import numpy as np
from msgspec.structs import replace

from builders import synthetic_trace
from builders.latents import latent_trace
from builders.panes import AT, drawn, row_of
from kvtrace.trace import CacheLayer, Tensor
from kvtrace_tui.desk.cursor import View
from kvtrace_tui.panes.inspector import InspectorPane
from kvtrace_tui.panes.rows import Shelf


async def test_the_inspector_reads_both_lanes_at_the_crosshair(one_pane):
    trace = synthetic_trace()
    lines = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(60, 30))
    value = trace.cache(4, 1).keys[1, 6, 5]
    other = trace.cache(4, 1, lane="recomputed").keys[1, 6, 5]
    assert f"{value:+.5f}" in row_of(lines, "K ")
    assert f"{other:+.5f}" in row_of(lines, "K ")
    assert "step 2" in row_of(lines, "written")
    assert "✓ rounding" in row_of(lines, "lanes")
    assert "✓" in row_of(lines, "check")
    assert "+1 row, 8 → 9" in row_of(lines, "did")


async def test_of_latents_the_inspector_says_what_the_step_added_to_them(one_pane):
    trace = latent_trace()
    lines = await drawn(
        one_pane, InspectorPane(Shelf()), trace, replace(AT, step=2, layer=0), size=(60, 30)
    )
    assert "latents +1 row, 6 → 7" in row_of(lines, "did")


async def test_names_of_lanes_are_never_cut(one_pane):
    for width in (28, 32, 38, 60):
        size = width, 20
        lines = await drawn(one_pane, InspectorPane(Shelf()), synthetic_trace(), size=size)
        assert any("cached recomputed" in " ".join(line.split()) for line in lines), width


async def test_a_low_inspector_says_all_of_it_in_one_table(one_pane):
    trace = synthetic_trace()
    app = one_pane(InspectorPane(Shelf()))
    async with app.run_test(size=(32, 20)):
        app.pane.show(trace, AT)
        text = "\n".join(app.lines())
        told = ("token", "written", "cached recomputed  Δ rel.", "lanes", "check", "did", "module")
        assert all(words in text for words in (*told, "cache ")), text
        assert f"{trace.cache(4, 1).keys[1, 6, 5]:+.5f}" in text


async def test_the_one_table_fits_into_the_narrowest_inspector(one_pane):
    trace = synthetic_trace()
    value = f"{trace.cache(4, 1).keys[1, 6, 5]:+.4f}"
    lines = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(28, 20))
    head = next(at for at, line in enumerate(lines) if "cached recomputed  Δ rel." in line)
    assert f"{value} {value} ✓ " in lines[head + 1]
    assert lines[head].index("recomputed") + 9 == lines[head + 1].rindex(value) + 6
    assert row_of(lines, "check").rstrip().endswith(" of out")
    assert not any(line.rstrip().endswith("…") for line in lines)
    for words in ("lanes", "did", "module", "cache "):
        assert row_of(lines, words).strip()
    low = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(28, 12))
    assert "✓ rounding" in row_of(low, "lanes")


async def test_the_inspector_says_what_recurrent_layers_keep_beside_the_rows(one_pane):
    trace = synthetic_trace()
    meta = trace.meta
    states = tuple(CacheLayer(3 + at, 8 + at, "state", 1, 1, 1, state_bytes=1024) for at in (0, 1))
    lines = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(60, 40))
    assert not any(line.strip().startswith("states") for line in lines)
    trace.source.meta = replace(meta, cache_layers=(*meta.cache_layers, *states))
    lines = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(60, 40))
    assert "2.00 KiB in 2 layers" in row_of(lines, "states")


async def test_attention_that_no_submodule_does_is_the_models(one_pane):
    trace = synthetic_trace()
    sites = tuple(replace(site, module="") for site in trace.meta.sites)
    trace.source.meta = replace(trace.meta, sites=sites)
    lines = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(60, 30))
    assert row_of(lines, "module").split() == ["module", "the", "model"]


async def test_a_bug_is_named_with_its_place(one_pane):
    trace = synthetic_trace()
    trace.source.pass_tensors["recomputed", 0, Tensor.VALUES, 1][0, 1, 4, 2] += 1
    lines = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(60, 30))
    assert "✗ bug-sized V row 4 dim 2" in row_of(lines, "lanes")
    lines = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(30, 40))
    assert "✗ bug-sized V row 4 dim 2" in " ".join(" ".join(lines).split())
    assert row_of(lines, "check").rstrip().endswith(" |Δ| of out")


async def test_the_cell_its_row_and_its_head_are_compared_apart(one_pane):
    trace = synthetic_trace()
    keys = trace.source.pass_tensors["recomputed", 0, Tensor.KEYS, 1]
    high = float(np.abs(keys[0, 1, :9]).max())
    keys[0, 1, 6, 5] += 0.25 * high  # under the crosshair
    keys[0, 1, 6, 2] += 0.5 * high  # in its row
    keys[0, 1, 3, 0] -= 0.75 * high  # elsewhere in the head
    lines = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(60, 30))
    compared = lines[lines.index(row_of(lines, "Δ rel.")) + 1 :]
    reference = float(np.abs(keys[0, 1, :9]).max())
    expected = [f"{share * high / reference:.1e}" for share in (0.25, 0.5, 0.75)]
    assert row_of(compared, "K ").split()[2:5] == expected


async def test_two_other_lanes_are_held_against_each_other(one_pane):
    trace = synthetic_trace()
    source = trace.source
    lane = trace.meta.lanes[0]
    source.meta = replace(trace.meta, lanes=(lane, replace(lane, name="referee")))
    for key in list(source.passes):
        source.passes["referee", key[1]] = source.passes[key]
    for key in list(source.pass_tensors):
        source.pass_tensors["referee", *key[1:]] = source.pass_tensors[key].copy()
    for key in list(source.lane_steps):
        source.lane_steps["referee", key[1]] = source.lane_steps[key]
    source.pass_tensors["referee", 0, Tensor.VALUES, 2][0, 0, 8] += 2.0
    at = replace(AT, base="recomputed", lane="referee", view=View.ABSOLUTE, layer=2, head=1)
    at = replace(at, row=8)
    lines = await drawn(one_pane, InspectorPane(Shelf()), trace, at, size=(60, 30))
    assert "recomputed    referee" in "\n".join(lines)
    assert "✗ bug-sized V row 8" in row_of(lines, "lanes")


async def test_nan_is_counted_and_never_hidden(one_pane):
    trace = synthetic_trace()
    trace.source.cell_tensors[1, Tensor.KEYS][1, 4, 2] = np.nan
    lines = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(60, 30))
    assert "✗ NaN or Inf" in row_of(lines, "lanes")
    assert any("1 NaN" in line for line in lines)
    assert lines[lines.index(row_of(lines, "Δ rel.")) + 1].split()[-1] == "NaN"


async def test_an_output_that_the_rows_do_not_explain_is_marked(one_pane):
    trace = synthetic_trace()
    trace.source.site_tensors[4, 1, Tensor.OUTPUT] *= 2
    lines = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(60, 30))
    assert "✗" in row_of(lines, "check")


async def test_without_another_lane_nothing_is_called_equal(one_pane):
    trace = synthetic_trace()
    trace.source.lane_steps.clear()
    lines = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(60, 30))
    assert "not compared" in row_of(lines, "lanes")
    assert "equal" not in "".join(lines)


async def test_a_low_pane_shows_everything_in_two_columns_with_whole_numbers(one_pane):
    trace = synthetic_trace()
    tall = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(40, 40))
    low = await drawn(one_pane, InspectorPane(Shelf()), trace, size=(80, 15))
    assert all(len(line) == 80 for line in low)
    halves = [line[start : start + 40].rstrip() for line in low[1:] for start in (0, 40)]
    assert sorted(filter(None, halves)) == sorted(
        line.rstrip() for line in tall[1:] if line.strip()
    )
    apart = trace.cache(4, 1).keys[1, 6, 5] - trace.cache(4, 1, lane="recomputed").keys[1, 6, 5]
    assert row_of(tall, "K ").endswith(f"{abs(apart):+.1e}")


async def test_what_a_step_did_to_shared_rows_names_the_layer_that_wrote_them(one_pane):
    trace = synthetic_trace()
    meta = trace.source.meta
    shared = replace(meta.sites[2], reads=1, source="shared", shared_from=1)
    trace.source.meta = replace(meta, sites=(*meta.sites[:2], shared))
    lines = await drawn(
        one_pane, InspectorPane(Shelf()), trace, replace(AT, layer=2), size=(60, 30)
    )
    assert "L1 wrote: +1 row, 8 → 9" in row_of(lines, "did")
