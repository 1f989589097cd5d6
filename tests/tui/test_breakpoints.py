import pytest

from builders import Shape, synthetic_trace
from kvtrace.errors import UsageError
from kvtrace_tui.desk.breakpoints import (
    DEFAULT,
    BreakKind,
    Breakpoint,
    Stop,
    next_stop,
    parse,
    stops,
    toggled,
    written,
)
from kvtrace_tui.found import Found


def test_conditions_are_read_as_they_are_written():
    text = 'step 3, step 12, token " key", token "a, b", finding sink'
    assert written(parse(text)) == text
    assert parse("") == frozenset()
    assert parse("finding") == DEFAULT
    assert parse("token key") == {Breakpoint(BreakKind.TOKEN, "key")}


@pytest.mark.parametrize("text", ["12", "step", "step -1", "step ٣", "token", 'token ""', "when x"])
def test_what_is_no_condition_is_refused_with_what_was_expected(text):
    with pytest.raises(UsageError, match="expected `step NUMBER`"):
        parse(text)


def test_a_breakpoint_is_set_and_cleared():
    once = toggled(DEFAULT, 7)
    assert Breakpoint(BreakKind.STEP, "7") in once
    assert toggled(once, 7) == DEFAULT


def test_stops_are_recorded_steps_each_with_its_reason():
    trace = synthetic_trace(Shape(decode=6))
    found = [Found(2, "finding", "diverged"), Found(99, "finding", "nowhere"), Found(None, "x", "")]
    points = parse("step 4, step 77, finding")
    assert stops(trace, points, found) == [
        Stop(2, "finding: diverged", found[0]),
        Stop(4, "step 4"),
    ]
    assert stops(trace, parse("finding sink"), found) == []


def test_a_plain_note_is_no_stop_and_a_bookmark_is():
    trace = synthetic_trace(Shape(decode=6))
    notes = [Found(1, "note", "hm", stops=False), Found(3, "bookmark", "here")]
    assert [stop.step for stop in stops(trace, DEFAULT, notes)] == [3]


def test_a_token_stops_where_it_goes_in_and_where_it_is_chosen():
    trace = synthetic_trace(Shape(decode=6))
    table = trace.overview
    token = int(table["chosen"][2])
    text = trace.source.texts[token] = "unmistakable"
    expected = [int(row["number"]) for row in table if token in (row["token"], row["chosen"])]
    found = stops(trace, {Breakpoint(BreakKind.TOKEN, text)})
    assert [stop.step for stop in found] == expected
    assert 2 in expected


def test_the_next_stop_is_the_closest_in_that_direction():
    at = [Stop(step, "") for step in (1, 4, 9)]
    assert next_stop(at, 4, 1) is at[2]
    assert next_stop(at, 4, -1) is at[0]
    assert next_stop(at, 9, 1) is None
    assert next_stop([], 0, -1) is None


def test_all_that_was_found_at_one_step_is_walked_one_by_one():
    found = [Found(4, "A", "", layer=layer) for layer in (0, 2)]
    at = [Stop(1, ""), *(Stop(4, "", one) for one in found), Stop(9, "")]
    assert next_stop(at, 4, 1) is at[1]  # it was not shown yet
    assert next_stop(at, 4, 1, at[1]) is at[2]
    assert next_stop(at, 4, 1, at[2]) is at[3]
    assert next_stop(at, 4, -1, at[2]) is at[1]
    assert next_stop(at, 4, -1, at[1]) is at[0]
    assert next_stop(at, 9, 1, at[2]) is None  # one has gone on by hand meanwhile
