"""Recovery: whole, lossy or nothing, and what was lost is named."""

import os

import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from builders.raw_frames import joined, split
from builders.reading import read_all, same, wrong
from builders.written import rows_of, write_trace
from kvtrace.errors import MissingError, OutputExistsError, TraceError
from kvtrace.files import open_trace
from kvtrace.files.layout import Kind
from kvtrace.files.recover import recover
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import Note, Tensor

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
    assert [one for one in wrong(recorded(trace), truth) if one != "ending"] == []


def recorded(trace):
    """All of it without the notes, for a copy says in some what it lacks."""
    return {key: item for key, item in read_all(trace).items() if key[0] != "note"}


def damaged(path, *places):
    raw = bytearray(path.read_bytes())
    for place in places:
        raw[place] ^= 1
    path.write_bytes(raw)
    return path


def steps_of(path):
    return [frame for frame in split(path)[1] if frame.kind == Kind.STEP]


def payload(frame):
    return frame.offset + frame.head().payload_start


def test_a_damaged_step_is_left_out_and_named(tmp_path, whole):
    done = recover(damaged(whole, steps_of(whole)[5].offset + 70), tmp_path / "b.kvt")
    assert (done.steps, done.lossy) == (70, True)
    assert "step 5 is damaged" in "; ".join(done.text)
    trace = open_trace(tmp_path / "b.kvt")
    assert trace.damage == []
    assert 5 not in trace.numbers


def test_a_step_whose_rows_are_damaged_keeps_all_the_others_and_says_which_are_lost(
    tmp_path, whole
):
    truth = read_all(open_trace(whole))
    done = recover(damaged(whole, payload(steps_of(whole)[3])), tmp_path / "b.kvt")
    assert (done.steps, done.lossy) == (71, True)
    assert sum("step 3, layer 0, queries: damaged" in text for text in done.text) == 1
    trace = open_trace(tmp_path / "b.kvt")
    assert trace.damage == []
    with pytest.raises(MissingError, match="step 3, layer 0: queries not recorded"):
        trace.queries(3, 0)
    assert same(trace.source.site_rows(3, 1, Tensor.QUERIES, None), truth["rows", 3, 1, 0, None])
    assert [note.step for note in trace.notes if "not recovered" in note.text] == [3]
    assert wrong(recorded(trace), truth) == []


def test_damaged_keys_of_decode_steps_are_recovered_from_their_copies(tmp_path, whole):
    truth = open_trace(whole).source.cells(0, Tensor.KEYS, 0, 140, None)
    third = steps_of(whole)[3]
    keys = payload(third) + sum(len(unit) for unit in third.units[:4])
    done = recover(damaged(whole, keys), tmp_path / "b.kvt")
    assert done.steps == 71
    assert same(open_trace(tmp_path / "b.kvt").source.cells(0, Tensor.KEYS, 0, 140, None), truth)


@pytest.mark.parametrize("lost", [b"\0" * 64, b"x", b""])
def test_a_trace_whose_start_is_damaged_or_lost_is_recovered(tmp_path, whole, lost):
    truth = read_all(open_trace(whole))
    whole.write_bytes(lost + whole.read_bytes()[64:])
    with pytest.raises(TraceError, match="kvtrace recover"):
        open_trace(whole)
    done = recover(whole, tmp_path / "b.kvt")
    assert (done.steps, done.lossy) == (71, True)
    assert "first 64 bytes are damaged or lost" in "; ".join(done.text)
    assert wrong(recorded(open_trace(tmp_path / "b.kvt")), truth) == []


def test_a_trace_that_lost_its_first_kilobytes_keeps_the_steps_behind_them(tmp_path, whole):
    truth, steps = read_all(open_trace(whole)), steps_of(whole)
    whole.write_bytes(whole.read_bytes()[steps[9].offset + 5 :])
    done = recover(whole, tmp_path / "b.kvt")
    trace = open_trace(tmp_path / "b.kvt")
    assert (trace.numbers, done.steps) == (list(range(10, 71)), 61)
    assert wrong(recorded(trace), truth) == []


def test_steps_behind_bytes_that_were_put_in_or_taken_out_are_read(tmp_path, whole):
    steps, raw = steps_of(whole), whole.read_bytes()
    after, cut = steps[20].offset, steps[40].offset
    whole.write_bytes(raw[:after] + b"\r" + raw[after : cut + 9] + raw[cut + 12 :])
    done = recover(whole, tmp_path / "b.kvt")
    assert set(range(71)) - set(open_trace(tmp_path / "b.kvt").numbers) == {40}
    assert done.lossy


def test_nothing_readable_is_an_error_and_writes_nothing(tmp_path, whole):
    first = next(f for f in split(whole)[1] if f.kind in (Kind.STEP, Kind.ROWS))
    os.truncate(whole, first.offset + 10)
    with pytest.raises(TraceError, match="not one step can be read"):
        recover(whole, tmp_path / "b.kvt")
    assert not (tmp_path / "b.kvt").exists()


def test_recovery_never_writes_over_something_unasked(tmp_path, whole):
    (tmp_path / "b.kvt").write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        recover(whole, tmp_path / "b.kvt")
    recover(whole, tmp_path / "b.kvt", force=True)
    assert len(open_trace(tmp_path / "b.kvt")) == len(open_trace(whole))


def test_what_is_recovered_is_never_replaced_by_what_is_left_of_it(tmp_path, whole):
    before = whole.read_bytes()
    (tmp_path / "link.kvt").symlink_to(whole)
    for output in (whole, tmp_path / "link.kvt"):
        with pytest.raises(OutputExistsError, match="is a trace that is read here"):
            recover(whole, output, force=True)
    assert whole.read_bytes() == before


def test_a_step_whose_mask_or_bias_is_damaged_keeps_its_rows_and_is_never_shown_without_it(
    tmp_path,
):
    truth = synthetic_trace(Shape(layers=1, prompt=3, decode=4))

    def masked(number):
        step = truth.step(number)
        mask = replace(step.sites[0].mask, offset=None, full=True, bias=True)
        seq = sum(run.count for run in step.caches[0].attended[0])
        ones = np.ones((1, 1, step.new, seq))
        extra = {"masks": {0: ones.astype("u1")}, "biases": {0: ones.astype("f4")}}
        masked = replace(step, sites=(replace(step.sites[0], mask=mask),))
        return masked, replace(rows_of(truth, step), **extra)

    path = tmp_path / "a.kvt"
    with TraceWriter(path, truth.meta) as writer:
        for number in truth.numbers:
            writer.append(*masked(number))
    first, second = steps_of(path)[1], steps_of(path)[3]
    in_mask = payload(first) + sum(map(len, first.units[:-2]))
    in_bias = payload(second) + sum(map(len, second.units[:-1]))
    done = recover(damaged(path, in_mask, in_bias), tmp_path / "b.kvt")
    trace = open_trace(tmp_path / "b.kvt")
    assert (done.steps, trace.damage) == (5, [])
    assert any("step 1, layer 0, mask: damaged" in text for text in done.text)
    assert any("step 3, layer 0, bias: damaged" in text for text in done.text)
    for number, what in ((1, "mask"), (3, "bias")):
        assert same(trace.cache(number, 0).keys, truth.cache(number, 0).keys)
        with pytest.raises(MissingError, match=f"step {number}, layer 0: {what} not recorded"):
            trace.weights(number, 0)
    trace.weights(2, 0)


def test_steps_that_lost_all_their_rows_are_recovered_with_what_they_say(tmp_path, whole):
    truth = open_trace(whole).step(0)
    header, frames = split(whole)
    left = [frame for frame in frames if frame.kind not in (Kind.ROWS, Kind.INDEX, Kind.TILE)]
    left = [left[0], next(one for one in left if one.kind == Kind.STEP), left[-1]]
    left = [replace(frame, sequence=place) for place, frame in enumerate(left)]
    whole.write_bytes(joined(header[:16] + bytes(48), left))
    damage = open_trace(whole)
    with pytest.raises(TraceError, match="step 0, layer 0, queries: lost to damage"):
        damage.queries(0, 0)
    assert [one.text for one in damage.damage] == ["step 0: rows are lost"]
    done = recover(whole, tmp_path / "b.kvt")
    assert (done.steps, done.lossy) == (1, True)
    assert open_trace(tmp_path / "b.kvt").step(0).tokens == truth.tokens
