"""Recovery: whole, lossy or nothing, and what was lost is named."""

import os

import pytest

from builders import Shape, synthetic_trace
from builders.raw_frames import split
from builders.reading import read_all, same, wrong
from builders.written import write_trace
from kvtrace.errors import OutputExistsError, TraceError
from kvtrace.files import open_trace, recover
from kvtrace.files.layout import Kind
from kvtrace.trace import Note

SHAPE = Shape(layers=2, prompt=70, decode=70)


@pytest.fixture
def whole(tmp_path):
    truth = synthetic_trace(SHAPE)
    truth.source.notes.append(Note("note", "kept"))
    return write_trace(tmp_path / "a.kvt", truth)


def test_a_whole_trace_is_copied_without_loss(tmp_path, whole):
    done = recover(whole, tmp_path / "b.kvt")
    assert (done.steps, done.lossy, done.text) == (71, False, ())
    one, other = read_all(open_trace(whole)), read_all(open_trace(tmp_path / "b.kvt"))
    assert one.keys() == other.keys()
    assert [address for address in one if not same(one[address], other[address])] == []


def test_a_cut_trace_keeps_its_whole_steps_and_says_that_it_lost_its_end(tmp_path, whole):
    step = next(f for f in split(whole)[1] if f.kind == Kind.STEP and b'"number":40' in f.json)
    truth = read_all(open_trace(whole))
    os.truncate(whole, step.offset + 100)
    done = recover(whole, tmp_path / "b.kvt")
    assert (done.steps, done.lossy) == (40, True)
    assert "did not end" in done.text[0]
    trace = open_trace(tmp_path / "b.kvt")
    assert trace.ending.reason == "recovered"
    assert trace.damage == []
    assert [one for one in wrong(read_all(trace), truth) if one != "ending"] == []


def test_a_damaged_step_is_left_out_and_named(tmp_path, whole):
    frames = [f for f in split(whole)[1] if f.kind == Kind.STEP]
    raw = bytearray(whole.read_bytes())
    raw[frames[3].offset + frames[3].head().payload_start] ^= 1
    raw[frames[5].offset + 70] ^= 1
    whole.write_bytes(raw)
    done = recover(whole, tmp_path / "b.kvt")
    assert (done.steps, done.lossy) == (69, True)
    text = "; ".join(done.text)
    assert "step 3, layer 0, queries: damaged" in text
    assert "step 5 is damaged" in text
    trace = open_trace(tmp_path / "b.kvt")
    assert trace.damage == []
    assert {3, 5}.isdisjoint(trace.numbers)


def test_nothing_readable_is_an_error_and_writes_nothing(tmp_path, whole):
    first = next(f for f in split(whole)[1] if f.kind in (Kind.STEP, Kind.ROWS))
    os.truncate(whole, first.offset + 10)
    with pytest.raises(TraceError, match="not one whole step"):
        recover(whole, tmp_path / "b.kvt")
    assert not (tmp_path / "b.kvt").exists()


def test_recovery_never_writes_over_something_unasked(tmp_path, whole):
    (tmp_path / "b.kvt").write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        recover(whole, tmp_path / "b.kvt")
    before = read_all(open_trace(whole))
    recover(whole, whole, force=True)
    after = read_all(open_trace(whole))
    assert [address for address in before if not same(before[address], after[address])] == []
