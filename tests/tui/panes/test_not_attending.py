"""A layer that did not attend in the step: every pane says so, and the inspector where it did."""

import pytest
from msgspec.structs import replace

from builders import synthetic_trace, without_attention
from builders.panes import AT, drawn, row_of
from kvtrace.analysis.attending import nearest
from kvtrace.errors import MissingError
from kvtrace.trace import Tensor
from kvtrace_tui.panes.attention import AttentionPane
from kvtrace_tui.panes.grid import GridPane
from kvtrace_tui.panes.inspector import InspectorPane
from kvtrace_tui.panes.rows import Shelf
from kvtrace_tui.panes.tensor_map import MapPane


def silent_in(*numbers):
    trace = synthetic_trace()
    for number in numbers:
        trace.source.steps[number] = replace(trace.step(number), caches=(), sites=())
    return trace


@pytest.mark.parametrize("tensor", list(Tensor))
async def test_no_map_calls_rows_unrecorded_that_there_never_were(one_pane, tensor):
    lines = await drawn(one_pane, MapPane(tensor, Shelf()), silent_in(4))
    assert "L1 H3" in lines[0]
    assert [one.strip() for one in lines[1:3]] == ["did not attend in this step", ""]


async def test_the_weights_of_a_layer_that_did_not_attend_are_not_looked_for(one_pane):
    lines = await drawn(one_pane, AttentionPane(Shelf()), silent_in(4))
    assert "L1 H3" in lines[0]
    assert [one.strip() for one in lines[1:3]] == ["did not attend in this step", ""]


@pytest.mark.parametrize(
    ("silent", "words"),
    [
        ((4,), "not here, but in step 3: g goes there"),
        ((0, 1, 2, 3, 4), "not here, but in step 5: g goes there"),
        ((3, 4), "not here, but in step 2: g goes there"),
        (tuple(range(7)), "not in this step"),
    ],
)
async def test_the_inspector_says_in_which_step_the_layer_attended(one_pane, silent, words):
    lines = await drawn(one_pane, InspectorPane(Shelf()), silent_in(*silent))
    assert row_of(lines, "attends").split(maxsplit=1)[1].strip() == words
    assert "GQA: 4 heads on 2 kv heads" in row_of(lines, "kind")
    assert row_of(lines, "module")


def test_a_step_that_is_damaged_is_not_named_as_the_one_to_look_at(monkeypatch):
    trace = silent_in(4)
    read = trace.source.step

    def damaged(number):
        if number == 3:
            raise MissingError("step 3 is damaged")
        return read(number)

    monkeypatch.setattr(trace.source, "step", damaged)
    assert nearest(trace, 4, AT.layer) == 5


@pytest.mark.parametrize(
    "pane", [lambda: MapPane(Tensor.KEYS, Shelf()), lambda: AttentionPane(Shelf()),
             lambda: InspectorPane(Shelf()), lambda: GridPane(Shelf())],
)  # fmt: skip
async def test_where_no_attention_was_seen_every_pane_of_a_layer_says_just_that(one_pane, pane):
    lines = await drawn(one_pane, pane(), without_attention())
    assert [one.strip() for one in lines[1:3]] == ["no attention was seen in this run", ""]


def test_a_layer_of_a_trace_that_has_none_is_not_said_to_be_out_of_range():
    with pytest.raises(MissingError, match=r"memory\.kvt: no attention was seen in this run$"):
        without_attention().site(0)
