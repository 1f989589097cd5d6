"""The writer: what it acknowledged is there, whatever happens to it, the disk or its neighbours."""

import errno
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from builders import Shape, synthetic_trace
from builders.reading import read_all, wrong
from builders.written import rows_of, write_trace
from kvtrace.errors import OutputExistsError, TraceError, WriteError
from kvtrace.files import disk, open_trace, writer
from kvtrace.files.describe import describe
from kvtrace.files.layout import NO_IDENTITY
from kvtrace.files.notes import append_note
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import Ending, Note

KILLS = int(os.environ.get("KVTRACE_KILLS", "120"))
SHAPE = Shape(layers=2, heads=2, kv_heads=1, dim=4, prompt=9, decode=150)


@pytest.fixture(scope="module")
def long_run():
    return synthetic_trace(SHAPE)


@pytest.fixture(scope="module")
def short_run():
    return synthetic_trace(Shape(layers=1, heads=2, kv_heads=1, dim=2, prompt=9, decode=3))


def in_child(work) -> int:
    """Run `work` in a forked process that never comes back."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


def test_every_acknowledged_step_survives_sigkill(tmp_path, long_run, monkeypatch):
    monkeypatch.setattr(writer, "INDEX_EVERY", 16)
    steps = [(step, rows_of(long_run, step)) for step in long_run]
    source = long_run.source
    chance = random.Random(7)
    ended = 0
    for kill in range(KILLS):
        path = tmp_path / f"{kill}.kvt"
        told, tell = os.pipe()

        def record(path=path, tell=tell):
            file = TraceWriter(path, long_run.meta)
            for step, rows in steps:
                file.append(step, rows)
                os.write(tell, b".")
            time.sleep(60)

        child = in_child(record)
        os.close(tell)
        os.read(told, 1)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        acknowledged = 1
        while more := os.read(told, 4096):
            acknowledged += len(more)
        os.close(told)
        trace = open_trace(path)
        assert acknowledged <= len(trace) <= acknowledged + 1
        assert list(trace.numbers) == list(range(len(trace)))
        assert (trace.ending, trace.damage) == (None, [])
        for number in {0, len(trace) // 2, len(trace) - 1}:
            assert trace.step(number) == source.step(number)
            assert (trace.cache(number, 1).keys == long_run.cache(number, 1).keys).all()
            assert (trace.output(number, 0) == long_run.output(number, 0)).all()
        ended += len(trace) == len(steps)
        path.unlink()
    assert ended < KILLS


class FailingDisk:
    """`os.pwrite` that does something else at its n-th call."""

    def __init__(self, at, fault):
        self.at, self.fault, self.calls = at, fault, 0

    def __call__(self, fd, buffer, offset):
        self.calls += 1
        if self.calls != self.at:
            return os.pwrite(fd, buffer, offset)
        if self.fault == "short":
            return os.pwrite(fd, buffer[: max(1, len(buffer) // 2)], offset)
        if self.fault == "half, then full":
            self.at, self.fault = self.calls + 1, errno.ENOSPC
            return os.pwrite(fd, buffer[: max(1, len(buffer) // 2)], offset)
        raise OSError(self.fault, os.strerror(self.fault))


def record_all(path, trace, write):
    """How many steps were acknowledged, and the error that ended it."""
    acknowledged = -1
    try:
        with TraceWriter(path, trace.meta, write=write) as file:
            acknowledged = 0
            for step in trace:
                file.append(step, rows_of(trace, step))
                acknowledged += 1
            file.end(trace.ending)
    except WriteError as error:
        return acknowledged, str(error)
    return acknowledged, None


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, "half, then full"])
def test_a_disk_that_fails_at_any_write_leaves_a_trace_of_whole_steps(tmp_path, short_run, fault):
    clean = FailingDisk(0, fault)
    record_all(tmp_path / "clean.kvt", short_run, clean)
    for at in range(1, clean.calls + 1):
        path = tmp_path / f"{at}.kvt"
        acknowledged, error = record_all(path, short_run, FailingDisk(at, fault))
        assert error is not None
        assert f"{at}.kvt" in error
        assert "writing stopped" in error
        if acknowledged < 0:
            assert not path.exists()
            continue
        trace = open_trace(path)
        assert len(trace) == acknowledged
        assert trace.damage == []
        assert describe(path).whole == path.stat().st_size
        assert wrong(read_all(trace), read_all(short_run)) == []


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [(errno.ENOSPC, "Free some space"), (errno.EFBIG, "ulimit -f"), (errno.EIO, "Check the disk")],
)
def test_each_fault_of_a_disk_has_a_remedy_of_its_own(tmp_path, short_run, fault, remedy):
    _, error = record_all(tmp_path / "a.kvt", short_run, FailingDisk(3, fault))
    assert f"{remedy} and run again" in error or f"({remedy}) and run again" in error


@pytest.mark.parametrize("fault", ["short", errno.EINTR])
def test_interrupted_and_short_writes_are_carried_on(tmp_path, short_run, fault, monkeypatch):
    monkeypatch.setattr(writer, "new_identity", lambda: NO_IDENTITY)
    clean = FailingDisk(0, fault)
    record_all(tmp_path / "clean.kvt", short_run, clean)
    good = (tmp_path / "clean.kvt").read_bytes()
    for at in range(1, clean.calls + 1):
        path = tmp_path / f"{at}.kvt"
        record_all(path, short_run, FailingDisk(at, fault))
        assert path.read_bytes() == good


def test_after_a_failed_write_nothing_more_is_added(tmp_path, short_run):
    full = FailingDisk(6, errno.ENOSPC)
    file = TraceWriter(tmp_path / "a.kvt", short_run.meta, write=full)
    for number in (0, 1):
        file.append(short_run.step(number), rows_of(short_run, short_run.step(number)))
    step = short_run.step(2)
    with pytest.raises(WriteError, match="Free some space"):
        file.append(step, rows_of(short_run, step))
    size = (tmp_path / "a.kvt").stat().st_size
    with pytest.raises(WriteError, match="an earlier write failed"):
        file.end(Ending("length"))
    file.close()
    assert (tmp_path / "a.kvt").stat().st_size == size


def test_a_disk_that_can_not_keep_what_was_written_fails_the_next_write(
    tmp_path, short_run, monkeypatch
):
    def refuse(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk, "_SYNC_SECONDS", 0.001)
    path = tmp_path / "a.kvt"
    file = TraceWriter(path, short_run.meta)
    first, second = short_run.step(0), short_run.step(1)
    monkeypatch.setattr(os, "fsync", refuse)
    file.append(first, rows_of(short_run, first))
    until = time.monotonic() + 20
    while file._file._sync_error is None and time.monotonic() < until:
        time.sleep(0.001)
    with pytest.raises(WriteError, match=r"Input/output error after .* Check the disk"):
        file.append(second, rows_of(short_run, second))
    file.close()
    assert open_trace(path).numbers == [0]


def test_an_existing_file_is_refused_and_left_as_it_is(tmp_path, short_run):
    path = tmp_path / "a.kvt"
    path.write_bytes(b"somebody's work")
    with pytest.raises(OutputExistsError, match="--force"):
        TraceWriter(path, short_run.meta)
    assert path.read_bytes() == b"somebody's work"


def test_replacing_a_trace_never_truncates_it_in_place(tmp_path, short_run):
    path = write_trace(tmp_path / "a.kvt", short_run)
    reader, before = open_trace(path), path.stat().st_ino
    with TraceWriter(path, short_run.meta, force=True) as file:
        assert path.stat().st_ino != before
        assert wrong(read_all(reader), read_all(short_run)) == []
        file.end(Ending("stopped"))
    assert len(open_trace(path)) == 0
    assert [one.name for one in tmp_path.iterdir()] == ["a.kvt"]


def test_a_replacement_that_can_not_begin_leaves_the_old_trace(tmp_path, short_run):
    path = write_trace(tmp_path / "a.kvt", short_run)
    for at in (1, 2):
        with pytest.raises(WriteError):
            TraceWriter(path, short_run.meta, force=True, write=FailingDisk(at, errno.ENOSPC))
        assert len(open_trace(path)) == 4
    assert [one.name for one in tmp_path.iterdir()] == ["a.kvt"]


def test_a_second_writer_is_refused(tmp_path, short_run):
    path = tmp_path / "a.kvt"
    with TraceWriter(path, short_run.meta):
        with pytest.raises(OutputExistsError, match="another process is writing"):
            TraceWriter(path, short_run.meta, force=True)
        with pytest.raises(OutputExistsError, match="another process is writing"):
            append_note(path, Note("note", "too early"))
    TraceWriter(path, short_run.meta, force=True).close()


def test_a_fork_that_lives_on_keeps_no_trace_from_being_replaced(tmp_path, short_run):
    with TraceWriter(tmp_path / "a.kvt", short_run.meta):
        child = in_child(lambda: signal.pause())
    try:
        TraceWriter(tmp_path / "a.kvt", short_run.meta, force=True).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("name", ["absent/a.kvt", "folder", "nul\0.kvt"])
def test_places_that_can_not_be_written_are_named_in_one_line(tmp_path, short_run, name):
    (tmp_path / "folder").mkdir()
    for force in (False, True):
        with pytest.raises(OutputExistsError) as caught:
            TraceWriter(tmp_path / name, short_run.meta, force=force)
        assert "\n" not in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_rows_that_do_not_fit_the_step_are_refused_before_anything_is_written(tmp_path, short_run):
    step = short_run.step(1)
    rows = rows_of(short_run, step)
    with TraceWriter(tmp_path / "a.kvt", short_run.meta) as file:
        size = file.size
        rows.keys[0] = rows.keys[0][..., :1]
        with pytest.raises(TraceError, match=r"step 1, keys of layer 0: float32 \[1, 1, 1, 1\]"):
            file.append(step, rows)
        rows.keys[0] = np.zeros((1, 1, 1, 2), np.float64)
        with pytest.raises(TraceError, match="float64"):
            file.append(step, rows)
        assert file.size == size


def test_numbers_of_steps_must_ascend(tmp_path, short_run):
    with TraceWriter(tmp_path / "a.kvt", short_run.meta) as file:
        file.append(short_run.step(1), rows_of(short_run, short_run.step(1)))
        with pytest.raises(TraceError, match="step 0 after 1"):
            file.append(short_run.step(0), rows_of(short_run, short_run.step(0)))


def test_notes_are_added_to_a_closed_trace_and_nothing_else_changes(tmp_path, short_run):
    path = write_trace(tmp_path / "a.kvt", short_run)
    before = path.read_bytes()
    notes = [Note("bookmark", "look here", step=2), Note("finding", "head 1 looks up", head=1)]
    for note in notes:
        append_note(path, note)
    assert path.read_bytes()[: len(before)] == before
    trace = open_trace(path)
    assert list(trace.notes) == notes
    assert trace.ending == short_run.ending
    assert (
        wrong(read_all(trace) | {("note", 0): None, ("note", 1): None}, read_all(short_run)) == []
    )


def test_a_note_is_not_added_behind_a_torn_end(tmp_path, short_run):
    path = write_trace(tmp_path / "a.kvt", short_run)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(TraceError, match="kvtrace recover"):
        append_note(path, Note("note", "lost"))


def test_a_trace_holds_no_path_no_user_and_no_host(tmp_path, short_run):
    path = write_trace(tmp_path / "some-folder-name.kvt", short_run)
    append_note(path, Note("note", "mine"))
    raw = path.read_bytes()
    node = os.uname().nodename
    for secret in (
        str(tmp_path),
        "some-folder-name",
        str(Path.cwd()),
        f'"{node}"',
        "/tmp",
        "/home",
    ):
        assert os.fsencode(secret) not in raw
    listed = describe(path).strings
    assert {"synthetic", "mine", "Anna has the red key."} <= set(listed)
    assert not [text for text in listed if os.sep in text and text not in ("[/foo]",)]


@pytest.mark.parametrize("fate", ["removed", "replaced", "moved"])
def test_a_trace_that_is_gone_when_it_ends_is_not_called_written(tmp_path, short_run, fate):
    path = tmp_path / "t.kvt"
    with TraceWriter(path, short_run.meta) as file:
        for step in short_run:
            file.append(step, rows_of(short_run, step))
        if fate == "moved":
            path.rename(tmp_path / "elsewhere.kvt")
            file.end(Ending("length"))
            return
        path.unlink()
        if fate == "replaced":
            path.write_bytes(b"another")
        with pytest.raises(WriteError, match="removed or replaced while it was written"):
            file.end(Ending("length"))
