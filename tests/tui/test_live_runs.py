"""The screen while a recorder writes: followed to its end, left, or told that it failed."""

import pytest

from builders.screens import app_of, press, shown, until
from builders.written import rows_of
from kvtrace.files import open_trace
from kvtrace.files.writer import TraceWriter
from kvtrace_tui.desk.desk import Recording
from kvtrace_tui.live_run import LiveEvent, LiveKind
from kvtrace_tui.screens.loading import LoadingScreen
from kvtrace_tui.screens.main import MainScreen

pytestmark = pytest.mark.usefixtures("truecolor")


class Run:
    def __init__(self):
        self.waiting, self.sent = [], []

    def poll(self):
        events, self.waiting = self.waiting, []
        return events

    def send(self, name, token=-1):
        self.sent.append(name)

    def close(self):
        pass


async def test_a_live_run_opens_at_once_and_is_followed_to_its_end(tmp_path, trace):
    path, run = tmp_path / "live.kvt", Run()
    app = app_of(None, run, lambda: open_trace(path))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        assert isinstance(app.screen, LoadingScreen)
        run.waiting.append(LiveEvent(LiveKind.PROGRESS, "reading weights", share=0.25))
        run.waiting.append(LiveEvent(LiveKind.LOG, "a line it printed"))
        await until(pilot, lambda: "reading weights" in "\n".join(shown(app)))
        assert "25%" in "\n".join(shown(app))
        assert "a line it printed" in "\n".join(shown(app))
        with TraceWriter(path, trace.meta) as writer:
            for number in (0, 1):
                writer.append(trace.step(number), rows_of(trace, trace.step(number)))
                run.waiting.append(LiveEvent(LiveKind.STEP))
                await until(pilot, lambda n=number: f"step {n}/{n}" in shown(app)[0])
            assert "● live" in shown(app)[0]
            await press(pilot, "N")
            writer.append(trace.step(2), rows_of(trace, trace.step(2)))
            run.waiting.append(LiveEvent(LiveKind.STEP))
            await until(pilot, lambda: "step 0/2" in shown(app)[0])
            await press(pilot, "x")
            assert run.sent == ["stop"]
            writer.end(trace.ending)
        run.waiting.append(LiveEvent(LiveKind.ENDED, "stopped"))
        await until(pilot, lambda: "■ recorded" in shown(app)[0])


async def test_what_is_told_while_it_loads_is_told_to_its_end(tmp_path):
    run, told = Run(), "called as model(tokens [1, new], start_pos=start): " * 3 + "the very end"
    app = app_of(None, run, lambda: open_trace(tmp_path / "none.kvt"))
    async with app.run_test(size=(80, 24)) as pilot:
        run.waiting.append(LiveEvent(LiveKind.LOG, told))
        await until(pilot, lambda: "the very end" in "\n".join(shown(app)))


async def test_a_run_that_fails_before_its_first_step_ends_the_app(tmp_path):
    run = Run()
    app = app_of(None, run, lambda: open_trace(tmp_path / "none.kvt"))
    async with app.run_test(size=(80, 24)) as pilot:
        run.waiting.append(LiveEvent(LiveKind.FAILED, "no such model"))
        await until(pilot, lambda: app._exit)
    assert app.return_value == 0


async def test_loading_can_be_left(tmp_path):
    app = app_of(None, Run(), lambda: open_trace(tmp_path / "none.kvt"))
    async with app.run_test(size=(80, 24)) as pilot:
        await press(pilot, "q")
        assert app._exit


@pytest.mark.parametrize("key", ["ctrl+p", "escape", "tab", "n", "f", "slash", "question_mark"])
async def test_keys_pressed_while_loading_leave_the_run_alone(tmp_path, trace, key):
    path, run = tmp_path / "live.kvt", Run()
    app = app_of(None, run, lambda: open_trace(path))
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, key)
        assert isinstance(app.screen, LoadingScreen)
        with TraceWriter(path, trace.meta) as writer:
            writer.append(trace.step(0), rows_of(trace, trace.step(0)))
            run.waiting.append(LiveEvent(LiveKind.STEP))
            await until(pilot, lambda: "step 0/0" in shown(app)[0])
        assert [type(screen) for screen in app.screen_stack[1:]] == [MainScreen]


async def test_a_failed_recorder_leaves_its_steps_on_the_screen(tmp_path, trace):
    path, run = tmp_path / "live.kvt", Run()
    app = app_of(None, run, lambda: open_trace(path))
    async with app.run_test(size=(120, 40)) as pilot:
        writer = TraceWriter(path, trace.meta)
        writer.append(trace.step(0), rows_of(trace, trace.step(0)))
        run.waiting.append(LiveEvent(LiveKind.STEP))
        await until(pilot, lambda: "step 0/0" in shown(app)[0])
        run.waiting.append(LiveEvent(LiveKind.FAILED, "killed (9), likely memory"))
        await until(pilot, lambda: "killed (9), likely memory" in shown(app)[-1])
        assert "✗ recorder failed" in shown(app)[0]
        assert app.screen.desk.recording is Recording.FAILED
        writer.close()
