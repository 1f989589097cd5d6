import pytest

from builders import Shape, synthetic_trace
from builders.screens import app_of, press, shown, until
from builders.written import rows_of, write_trace
from kvtrace.errors import TraceError
from kvtrace.files import open_trace
from kvtrace.files.notes import append_note
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import Note
from kvtrace_tui.desk.desk import Recording
from kvtrace_tui.follow import QUIET_S, Follower
from kvtrace_tui.live_run import LiveEvent, LiveKind


class Run:
    """A recorder that says what a test tells it to."""

    def __init__(self):
        self.waiting, self.sent = [], []

    def says(self, kind, text="", **more):
        self.waiting.append(LiveEvent(kind, text, **more))

    def poll(self):
        events, self.waiting = self.waiting, []
        return events

    def send(self, name, token=-1):
        self.sent.append((name, token))

    def close(self):
        self.sent.append(("close", -1))


@pytest.fixture
def recorded():
    return synthetic_trace(Shape(prompt=5, decode=3))


def append(writer, trace, number):
    step = trace.step(number)
    writer.append(step, rows_of(trace, step))


def test_a_live_run_is_followed_from_loading_to_its_end(tmp_path, recorded):
    path, run = tmp_path / "a.kvt", Run()
    follower = Follower(lambda: open_trace(path), run)
    run.says(LiveKind.PROGRESS, "loading weights", share=0.5)
    run.says(LiveKind.LOG, "warning: \x1b[31mred")
    assert follower.poll()
    assert follower.recording is Recording.LOADING
    assert follower.progress == ("loading weights", 0.5)
    assert list(follower.log) == ["warning: ␛[31mred"]
    with TraceWriter(path, recorded.meta) as writer:
        append(writer, recorded, 0)
        run.says(LiveKind.STEP)
        assert follower.poll()
        assert (follower.recording, len(follower.trace)) == (Recording.RUNNING, 1)
        assert not follower.poll()
        append(writer, recorded, 1)
        run.says(LiveKind.PAUSED)
        assert follower.poll()
        assert (follower.recording, len(follower.trace)) == (Recording.PAUSED, 2)
        follower.send("step")
        assert run.sent == [("step", -1)]
        assert follower.recording is Recording.RUNNING
        writer.end(recorded.ending)
    run.says(LiveKind.ENDED, "length")
    assert follower.poll()
    assert follower.recording is Recording.RECORDED
    assert not follower.may_change
    follower.send("run")
    assert run.sent == [("step", -1)]


def test_a_trace_that_is_about_to_be_replaced_is_not_taken_for_the_run(tmp_path, recorded):
    path, run = write_trace(tmp_path / "a.kvt", synthetic_trace(Shape(prompt=2, decode=9))), Run()
    follower = Follower(lambda: open_trace(path), run)
    assert not follower.poll()
    assert follower.trace is None
    with TraceWriter(path, recorded.meta, force=True) as writer:
        append(writer, recorded, 0)
        run.says(LiveKind.STEP)
        assert follower.poll()
    assert follower.trace.step(0).new == 5
    failed = Follower(lambda: open_trace(path), run)
    run.says(LiveKind.FAILED, "no such model")
    assert failed.poll()
    assert failed.trace is None


def test_a_recorder_that_fails_keeps_what_it_recorded(tmp_path, recorded):
    path, run = tmp_path / "a.kvt", Run()
    follower = Follower(lambda: open_trace(path), run)
    writer = TraceWriter(path, recorded.meta)
    append(writer, recorded, 0)
    run.says(LiveKind.STEP)
    follower.poll()
    run.says(LiveKind.FAILED, "killed (9), likely memory")
    assert follower.poll()
    assert follower.recording is Recording.FAILED
    assert len(follower.trace) == 1
    writer.close()


def test_a_trace_without_an_end_whose_recorder_has_ended_does_not_count_as_growing(
    tmp_path, recorded
):
    path, run = tmp_path / "a.kvt", Run()
    follower = Follower(lambda: open_trace(path), run)
    with TraceWriter(path, recorded.meta) as writer:
        append(writer, recorded, 0)
        run.says(LiveKind.STEP)
        run.says(LiveKind.ENDED, "stopped")
        assert follower.poll()
        assert follower.recording is Recording.INCOMPLETE


def test_a_recorder_that_fails_at_once_leaves_no_trace(tmp_path):
    run = Run()
    follower = Follower(lambda: open_trace(tmp_path / "a.kvt"), run)
    run.says(LiveKind.FAILED, "no such model")
    follower.poll()
    assert follower.trace is None
    assert follower.failure.text == "no such model"


def test_a_file_somebody_else_writes_is_followed_and_later_counts_as_cut_off(tmp_path, recorded):
    path, now = tmp_path / "a.kvt", [100.0]
    with TraceWriter(path, recorded.meta) as writer:
        append(writer, recorded, 0)
        trace = open_trace(path)
        follower = Follower(lambda: trace, None, trace, clock=lambda: now[0])
        assert follower.recording is Recording.INCOMPLETE
        append(writer, recorded, 1)
        assert follower.poll()
        assert (follower.recording, len(trace)) == (Recording.GROWING, 2)
        now[0] += QUIET_S
        assert follower.poll() or follower.recording is Recording.INCOMPLETE


def test_what_happens_to_a_closed_trace_while_it_is_looked_at_is_told(tmp_path, recorded):
    path = write_trace(tmp_path / "a.kvt", recorded)
    trace = open_trace(path)
    follower = Follower(lambda: trace, None, trace)
    assert (follower.poll(), follower.recording) == (False, Recording.RECORDED)
    append_note(path, Note("bookmark", "look", step=1))
    assert follower.poll()
    assert [note.text for note in trace.notes] == ["look"]
    path.rename(tmp_path / "b.kvt")
    assert follower.poll()
    assert follower.fate == "a.kvt was deleted or renamed; shown is what was opened"
    assert not follower.poll()
    (tmp_path / "b.kvt").write_bytes(b"")
    assert follower.poll()
    assert [one.text for one in trace.damage] == [
        "a.kvt: cut short while it was open; nothing more of it is read. Open it again."
    ]


def test_without_a_recorder_a_file_that_is_no_trace_is_an_error(tmp_path):
    path = tmp_path / "a.kvt"
    path.write_bytes(b"not a trace")
    follower = Follower(lambda: open_trace(path))
    with pytest.raises(TraceError):
        follower.poll()


def test_a_flood_of_log_lines_is_bounded():
    run = Run()

    def never():
        raise TraceError("no")

    follower = Follower(never, run)
    run.says(LiveKind.LOG, "x\n" * 100_000)
    follower.poll()
    assert len(follower.log) == 5000


@pytest.mark.parametrize("live", [True, False])
async def test_only_where_a_recorder_was_heard_the_log_says_that_it_printed_nothing(live):
    app = app_of(synthetic_trace(), live=Run() if live else None)
    async with app.run_test(size=(120, 30)) as pilot:
        await press(pilot, "o")
        await until(pilot, lambda: "print" in "\n".join(shown(app)))
        lines = "\n".join(shown(app))
        assert ("has printed nothing" in lines) is live
        assert ("a trace does not hold it" in lines) is not live
