import pytest

from builders import Shape, synthetic_trace
from kvtrace.errors import UsageError
from kvtrace_tui.breakpoints import (
    DEFAULT,
    BreakKind,
    Breakpoint,
    next_stop,
    parse,
    stops,
    toggled,
    written,
)


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
    found = [(2, "diverged at step 2"), (99, "nowhere")]
    points = parse("step 4, step 77, finding")
    assert stops(trace, points, found) == {2: "diverged at step 2", 4: "step 4"}
    assert stops(trace, parse("finding sink"), found) == {}


def test_a_token_stops_where_it_goes_in_and_where_it_is_chosen():
    trace = synthetic_trace(Shape(decode=6))
    table = trace.overview
    token = int(table["chosen"][2])
    text = trace.source.texts[token] = "unmistakable"
    expected = [int(row["number"]) for row in table if token in (row["token"], row["chosen"])]
    assert list(stops(trace, {Breakpoint(BreakKind.TOKEN, text)})) == expected
    assert 2 in expected


def test_the_next_stop_is_the_closest_in_that_direction():
    assert next_stop([1, 4, 9], 4, 1) == 9
    assert next_stop([1, 4, 9], 4, -1) == 1
    assert next_stop([1, 4, 9], 9, 1) is None
    assert next_stop([], 0, -1) is None
