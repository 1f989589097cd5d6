"""What goes on beside the screen ends with it."""

import asyncio

import pytest
from textual.command import CommandPalette, DiscoveryHit

from builders import Shape, synthetic_trace
from builders.screens import app_of, press, until
from kvtrace_tui.screens.palette import ActionCommands


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


@pytest.fixture
def endless_search(monkeypatch):
    """The palette finds one thing after another, and lists each at once."""

    async def discover(self):
        while True:
            await asyncio.sleep(0)
            yield DiscoveryHit("one more", lambda: None)

    monkeypatch.setattr(ActionCommands, "discover", discover)
    monkeypatch.setattr(CommandPalette, "_RESULT_BATCH_TIME", 0.0)


@pytest.mark.parametrize("typed", [(), ("a",), ("a", "backspace")])
async def test_the_app_closes_cleanly_while_the_palette_is_searching(trace, endless_search, typed):
    app = app_of(trace)
    async with app.run_test(size=(120, 40)):
        app.action_command_palette()
        await asyncio.sleep(0)
        for key in typed:
            app.simulate_key(key)
    assert app.failure is None


async def test_the_palette_is_left_cleanly_while_it_is_searching(trace, endless_search):
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        app.action_command_palette()
        await until(pilot, lambda: isinstance(app.screen, CommandPalette) and app.screen.is_mounted)
        palette = app.screen
        palette.dismiss(None)
        palette._gather_commands("a")
        await until(pilot, lambda: not isinstance(app.screen, CommandPalette))
        await press(pilot, "n")
    assert app.failure is None
