"""Frames that the screen writes by itself leave the terminal as Textual's own would."""

import pytest

from builders import Shape, synthetic_trace
from builders.painted import Painted
from builders.screens import app_of, press, shown, until
from kvtrace_tui.screens.direct import Written
from kvtrace_tui.screens.main import MainScreen

KEYS = (
    *"nlkJ", *"]}", *"dd", *"tlt", *"m", *"+l0", *"s", *"52", "tab", "end", "n", *"zlz",
    "question_mark", "escape", "n", "b", "f", "escape", "h",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("truecolor")


def watched(trace):
    """An app, and the terminal it writes to; how its frames were made."""
    app = app_of(trace)
    terminal, kinds = Painted(), []
    display = app._display

    def displayed(screen, renderable):
        if renderable is not None:
            terminal.feed(renderable.render_segments(app.console))
            kinds.append(isinstance(renderable, Written))
        display(screen, renderable)

    app._display = displayed
    return app, terminal, kinds


def whole(app):
    """A terminal on which Textual paints all of the screen."""
    terminal = Painted()
    for y, strip in enumerate(app.screen._compositor.render_strips()):
        terminal.feed(f"\x1b[{y + 1};1H{strip.render(app.console)}")
    return terminal


@pytest.mark.parametrize("size", [(160, 45), (80, 24)])
async def test_after_every_key_the_terminal_shows_what_the_screen_holds(size):
    app, terminal, kinds = watched(synthetic_trace(Shape(layers=3, heads=4, prompt=5, decode=6)))
    async with app.run_test(size=size) as pilot:
        for key in KEYS:
            await press(pilot, key)
            if isinstance(app.screen, MainScreen):  # a question has a cursor that blinks
                await until(pilot, lambda: terminal.different(whole(app)) == [])
    assert sum(kinds) >= len(KEYS) // 2, "most frames are written by the screen itself"


async def test_a_resized_terminal_shows_what_the_screen_holds():
    app, terminal, _ = watched(synthetic_trace(Shape(layers=3, heads=4, prompt=5, decode=6)))
    async with app.run_test(size=(160, 45)) as pilot:
        for size in ((100, 30), (80, 24), (30, 8), (180, 50), (160, 45)):
            await press(pilot, "n")
            await pilot.resize_terminal(*size)
            await press(pilot, "l")
            await until(pilot, lambda: not outdated(terminal, whole(app)))


def outdated(terminal, anew):
    """Cells that show something else than they should; those outside the screen do not count."""
    return [at for at in terminal.different(anew) if at in anew.cells]


async def test_a_step_writes_a_small_part_of_the_screen():
    app, _, _ = watched(synthetic_trace(Shape(layers=3, heads=4, prompt=40, decode=20)))
    async with app.run_test(size=(160, 45)) as pilot:
        await press(pilot, "n", "l")
        texts = []
        display = app._display
        app._display = lambda screen, one: (
            texts.append(one.render_segments(app.console)) if one is not None else None,
            display(screen, one),
        )
        await press(pilot, "h")
        everything = sum(
            len(strip.render(app.console)) for strip in app.screen._compositor.render_strips()
        )
        assert 0 < sum(map(len, texts)) < everything / 3


@pytest.mark.parametrize("size", [(300, 80), (160, 45), (80, 24)])
async def test_the_start_paints_the_whole_screen_once_then_only_what_is_new(size):
    app, terminal, kinds = watched(synthetic_trace(Shape(layers=3, heads=4, prompt=5, decode=6)))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.screen.desk.answer.verdict not in ("", "checking"))
        await until(pilot, lambda: terminal.different(whole(app)) == [])
    assert kinds.count(False) == 1


@pytest.mark.parametrize("key", ["z", "escape"])
async def test_another_layout_is_one_frame(key):
    app, terminal, kinds = watched(synthetic_trace(Shape(layers=3, heads=4, prompt=5, decode=6)))
    async with app.run_test(size=(160, 45)) as pilot:
        await press(pilot, "n", *["z"] * (key == "escape"))
        await until(pilot, lambda: terminal.different(whole(app)) == [])
        kinds.clear()
        await press(pilot, key)
        await until(pilot, lambda: terminal.different(whole(app)) == [])
    assert kinds.count(False) == 1


async def test_a_notice_that_goes_leaves_what_was_under_it():
    app, terminal, _ = watched(synthetic_trace(Shape(layers=3, heads=4, prompt=5, decode=6)))
    async with app.run_test(size=(160, 45), notifications=True) as pilot:
        await press(pilot, "n")
        for said in ("first", "second"):
            app.notify(said, timeout=60)
            await until(pilot, lambda text=said: text in "".join(shown(app)))
            await press(pilot, "n")
            app.clear_notifications()
            await until(pilot, lambda text=said: text not in "".join(shown(app)))
            await until(pilot, lambda: terminal.different(whole(app)) == [])
