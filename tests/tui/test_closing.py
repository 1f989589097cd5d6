"""What goes on beside the screen ends with it."""

import asyncio

import pytest

from builders import Shape, synthetic_trace
from builders.screens import app_of, until


@pytest.fixture
def trace():
    return synthetic_trace(Shape(layers=2, heads=2, prompt=4, decode=3))


async def test_a_check_that_outlives_the_screen_ends_without_a_word(trace):
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: app.screen.desk.answer.verdict not in ("", "checking"))
        screen = app.screen
    closed = asyncio.new_event_loop()
    closed.close()
    screen._checking.check(trace, "recomputed", closed)
    before = screen.desk.answer
    screen._checking.check(trace, "recomputed", asyncio.get_running_loop())
    await asyncio.sleep(0)
    assert screen.desk.answer is before
