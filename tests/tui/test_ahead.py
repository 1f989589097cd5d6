"""What is drawn before it is asked for is what would be drawn then."""

import pytest

from builders.screens import app_of, press, until
from kvtrace_tui.desk import moves

SIZE = (160, 45)
FOR_A_STEP = {"timeline", "sentence", "keys", "values", "queries", "output", "attention",
              "inspector", "cost"}  # fmt: skip
FOR_A_LAYER = {"keys", "values", "queries", "output", "attention", "inspector"}


def spots(pane):
    return {name: getattr(pane, name) for name in pane.spots}


def texts(pane):
    return [line.text for line in pane.lines()]


def foreseen(app, trace, place):
    """Panes that hold lines of a place."""
    panes = app.screen._panes.items()
    return {name for name, pane in panes
            if pane._ahead and pane._ahead.key == pane._key_of(trace, place)}  # fmt: skip


def answered(app):
    """Whether the check is through; it finds nothing, for which panes would be drawn anew."""
    assert not app.screen.desk.found
    return app.screen.desk.answer.verdict not in ("", "checking")


@pytest.mark.parametrize(
    ("key", "expected"), [("n", FOR_A_STEP), ("right_square_bracket", FOR_A_LAYER)]
)
async def test_the_same_key_shows_what_was_drawn_while_it_was_quiet(trace, key, expected):
    app = app_of(trace)
    async with app.run_test(size=SIZE) as pilot:
        before = app.screen.desk.cursor
        await until(pilot, lambda: answered(app))
        await press(pilot, key)
        now = app.screen.desk.cursor
        panes = {name: app.screen._panes[name] for name in expected}
        left = {name: (texts(pane), spots(pane)) for name, pane in panes.items()}
        further = moves.again(before, now, trace)
        await until(pilot, lambda: foreseen(app, trace, further) >= expected)
        assert left == {name: (texts(pane), spots(pane)) for name, pane in panes.items()}
        drawn = {name: pane._ahead.lines for name, pane in panes.items()}
        await press(pilot, key)
        assert app.screen.desk.cursor == further
        for name, pane in panes.items():
            assert pane.lines() is drawn[name], name
            shown = texts(pane), spots(pane)
            assert shown != left[name], name
            pane.redraw()
            assert shown == (texts(pane), spots(pane)), name


async def test_a_step_on_is_drawn_at_first_but_not_used_in_another_size(trace):
    app = app_of(trace)
    async with app.run_test(size=SIZE) as pilot:
        further = moves.by_steps(app.screen.desk.cursor, trace, 1)
        await until(pilot, lambda: answered(app))
        await until(pilot, lambda: foreseen(app, trace, further) >= FOR_A_STEP)
        app.screen._panes["keys"].redraw()
        assert "keys" not in foreseen(app, trace, further)
        await pilot.resize_terminal(200, 50)
        await press(pilot, "n")
        for pane in app.screen._panes.values():
            assert len(pane.lines()) == pane.size.height
            assert all(line.cell_length == pane.size.width for line in pane.lines())


async def test_nothing_is_drawn_ahead_while_the_trace_may_still_change(trace):
    trace.source.ending = None
    app = app_of(trace)
    async with app.run_test(size=SIZE) as pilot:
        await press(pilot, "n")
        assert app.screen._ahead._timer is None


def test_a_move_made_once_more_goes_on_along_its_axis(trace):
    first = moves.start(trace)
    second = moves.by_steps(first, trace, 1)
    assert moves.again(first, second, trace) == moves.by_steps(first, trace, 2)
    assert moves.again(second, first, trace) == moves.by_steps(first, trace, -1)
    deeper = moves.by_layers(first, trace, 1)
    assert moves.again(first, deeper, trace) == moves.by_layers(first, trace, 2)
    far = moves.by_steps(first, trace, 5)
    assert moves.again(first, far, trace) is None  # that was a jump
    last = moves.by_steps(first, trace, 99)
    assert moves.again(moves.by_steps(last, trace, -1), last, trace) is None  # an end
    assert moves.again(first, first, trace) is None
