"""Flipped bits and cut files: never damage read as good, and everything else stays usable."""

import errno
import json
import os

import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from builders.raw_frames import joined, pointed, split
from builders.reading import read_all, same, wrong
from builders.written import rows_of, write_trace
from kvtrace.analysis.heads.grid import divergence
from kvtrace.errors import TraceError
from kvtrace.files import open_trace
from kvtrace.files.describe import describe
from kvtrace.files.layout import HEAD_BYTES, HEADER_BYTES, NO_IDENTITY, Kind, pack_header
from kvtrace.files.notes import append_note
from kvtrace.files.reading.frames import FrameFile
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import Note, Tensor, Trace

SMALL = Shape(layers=1, heads=2, kv_heads=1, dim=2, prompt=9, decode=2)


@pytest.fixture(scope="module")
def small():
    trace = synthetic_trace(SMALL)
    trace.source.notes.append(Note("note", "said by the builder"))
    return trace


def killed(path, trace):
    """A trace whose recorder was killed: no INDEX, no END."""
    writer = TraceWriter(path, trace.meta)
    for step in trace:
        writer.append(step, rows_of(trace, step))
    size = writer.size
    writer.close()
    os.truncate(path, size)
    with path.open("r+b") as file:
        file.seek(16)
        file.write(bytes(48))
    return path


class Flipped:
    """A file in which one bit at a time is wrong."""

    def __init__(self, path):
        self.path, self.good = path, path.read_bytes()
        self.truth = read_all(open_trace(path))

    def unnoticed(self, byte, bit):
        """Whether a reader takes for good what is not, or misses something and says nothing."""
        with self.path.open("r+b") as file:
            file.seek(byte)
            file.write(bytes([self.good[byte] ^ (1 << bit)]))
        try:
            trace = open_trace(self.path)
            found = read_all(trace)
            missing = any(not same(found.get(one), item) for one, item in self.truth.items())
            return wrong(found, self.truth) or (missing and not trace.damage)
        except TraceError:
            return False
        finally:
            with self.path.open("r+b") as file:
                file.seek(byte)
                file.write(self.good[byte : byte + 1])


def test_no_flipped_bit_of_any_head_is_read_as_good(tmp_path, small):
    flipped = Flipped(killed(tmp_path / "a.kvt", small))
    heads = [range(HEADER_BYTES)]
    heads += [range(f.offset, f.offset + HEAD_BYTES) for f in split(flipped.path)[1]]
    places = [(byte, bit) for head in heads for byte in head for bit in range(8)]
    assert [place for place in places if flipped.unnoticed(*place)] == []


@pytest.mark.parametrize(("how", "stride"), [(killed, 1), (write_trace, 5)])
def test_no_flipped_bit_of_any_byte_is_read_as_good(tmp_path, small, how, stride):
    flipped = Flipped(how(tmp_path / "a.kvt", small))
    places = [(byte, (5 * byte + 3) % 8) for byte in range(0, len(flipped.good), stride)]
    assert [place for place in places if flipped.unnoticed(*place)] == []


def test_a_flipped_bit_is_reported_with_step_layer_and_tensor(tmp_path, small):
    path = write_trace(tmp_path / "a.kvt", small)
    _, frames = split(path)
    step = next(f for f in frames if f.kind == Kind.STEP and b'"number":1' in f.json)
    at = step.offset + step.head().payload_start
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    trace = open_trace(path)
    with pytest.raises(TraceError, match="step 1, layer 0, queries: damaged at byte"):
        trace.queries(1, 0)
    assert [one.text for one in trace.damage] == ["step 1, layer 0, queries: damaged"]
    assert trace.output(1, 0).shape == (2, 1, 2)
    assert trace.queries(2, 0).shape == (2, 1, 2)


def test_a_damaged_copy_of_cells_is_read_from_the_steps_instead(tmp_path):
    truth = synthetic_trace(Shape(layers=2, prompt=4, decode=70))
    path = write_trace(tmp_path / "a.kvt", truth)
    raw = bytearray(path.read_bytes())
    tile = next(frame for frame in split(path)[1] if frame.kind == Kind.TILE)
    raw[tile.offset + tile.head().payload_start] ^= 16
    path.write_bytes(raw)
    trace = open_trace(path)
    assert (trace.cache(70, 0).keys == truth.cache(70, 0).keys).all()
    assert "copied cells 0 to 64" in trace.damage[0].text


def test_damage_to_one_frame_of_a_long_prompt_leaves_its_other_rows_readable(tmp_path):
    truth = synthetic_trace(Shape(prompt=150, decode=1))
    path = killed(tmp_path / "a.kvt", truth)
    part = [frame for frame in split(path)[1] if frame.kind == Kind.ROWS][1]
    raw = bytearray(path.read_bytes())
    raw[part.offset] ^= 1
    path.write_bytes(raw)
    trace = open_trace(path)
    assert list(trace.numbers) == [0, 1]
    with pytest.raises(TraceError, match="step 0, layer 0, queries: lost"):
        trace.queries(0, 0)
    source = trace.source
    for first, count in ((0, 64), (128, 22)):
        rows = source.cells(0, Tensor.KEYS, first, count, None)
        assert (rows == truth.source.cells(0, Tensor.KEYS, first, count, None)).all()
    with pytest.raises(TraceError):
        source.cells(0, Tensor.KEYS, 64, 1, None)


def test_every_cut_opens_up_to_its_last_whole_step_and_says_where_it_ends(tmp_path, small):
    path = killed(tmp_path / "a.kvt", small)
    good, (_, frames) = path.read_bytes(), split(path)
    truth = read_all(open_trace(path))
    ends = [frame.offset + len(frame.packed()) for frame in frames]
    steps = [end for frame, end in zip(frames, ends, strict=True) if frame.kind == Kind.STEP]
    cut = tmp_path / "cut.kvt"
    cut.write_bytes(good)
    for size in range(len(good) - 1, -1, -1):
        os.truncate(cut, size)
        if size < ends[0]:
            with pytest.raises(TraceError):
                open_trace(cut)
            continue
        trace = open_trace(cut)
        assert len(trace) == sum(end <= size for end in steps)
        assert trace.ending is None
        assert trace.damage == []
        if size % 16 == 0:
            report = describe(cut)
            assert report.whole == max(end for end in ends if end <= size)
            assert report.size == size
            assert wrong(read_all(trace), truth) == []


def test_a_cut_of_a_closed_trace_keeps_every_step_before_it(tmp_path, small):
    path = write_trace(tmp_path / "a.kvt", small)
    good, truth = path.read_bytes(), read_all(open_trace(path))
    cut = tmp_path / "cut.kvt"
    cut.write_bytes(good)
    for size in range(len(good) - 1, HEADER_BYTES, -97):
        os.truncate(cut, size)
        try:
            trace = open_trace(cut)
        except TraceError:
            assert size < 2000
            continue
        assert wrong(read_all(trace), truth) == []


def test_a_file_that_shrinks_while_it_is_open_is_an_error_and_not_a_crash(tmp_path, small):
    path = write_trace(tmp_path / "a.kvt", small)
    trace = open_trace(path)
    os.truncate(path, 1000)
    with pytest.raises(TraceError):
        trace.queries(1, 0)
    assert trace.source.refresh()
    assert [one.text for one in trace.damage] == [
        "step 1 is damaged",
        "a.kvt: cut short while it was open; nothing more of it is read. Open it again.",
    ]
    assert not trace.source.refresh()


def test_a_disk_that_refuses_to_read_is_an_error_and_not_a_crash(tmp_path, small, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = write_trace(tmp_path / "a.kvt", small)
    trace = open_trace(path)
    monkeypatch.setattr(os, "pread", refuse)
    monkeypatch.setattr(os, "preadv", refuse)
    with pytest.raises(TraceError, match=r"can't be read: Input/output error.*kvtrace recover"):
        trace.queries(1, 0)
    with pytest.raises(TraceError, match="Input/output error"):
        open_trace(path)


def test_another_run_written_into_an_open_file_is_never_mixed_with_the_first(tmp_path, small):
    path = write_trace(tmp_path / "a.kvt", small)
    size = path.stat().st_size
    trace = open_trace(path)
    other = write_trace(tmp_path / "b.kvt", synthetic_trace(SMALL, seed=9))
    path.write_bytes(other.read_bytes().ljust(size, b"\0")[:size])
    os.utime(path, ns=(1, 1))  # however coarse the file system's clock is
    assert trace.source.refresh()
    with pytest.raises(TraceError, match=r"written over while it was open.* Open it again"):
        trace.queries(2, 0)
    with pytest.raises(TraceError):
        trace.source.again()


@pytest.mark.parametrize("kind", [Kind.STEP, Kind.ROWS, Kind.META])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_whole_frame_of_another_trace_is_never_taken_for_its_own(tmp_path, small, kind, indexed):
    mine = write_trace(tmp_path / "a.kvt", small)
    other = write_trace(tmp_path / "b.kvt", synthetic_trace(SMALL, seed=9))
    truth = read_all(open_trace(mine))
    header, frames = split(mine)
    places = [place for place, frame in enumerate(frames) if frame.kind == kind]
    frames[places[-1]] = split(other)[1][places[-1]]
    mine.write_bytes(pointed(header, frames) if indexed else joined(pack_header(1), frames))
    trace = open_trace(mine)
    assert wrong(read_all(trace), truth) == []
    assert trace.damage != []
    place = len(header) + sum(len(frame.packed()) for frame in frames[: places[-1]])
    with pytest.raises(TraceError, match=f"frame at byte {place} is of another trace"):
        FrameFile(mine).frame(place)


def test_traces_from_before_there_were_identities_are_read_and_added_to(tmp_path, small):
    path = write_trace(tmp_path / "a.kvt", small)
    truth = read_all(open_trace(path))
    header, frames = split(path)
    old = [replace(frame, identity=NO_IDENTITY) for frame in frames]
    path.write_bytes(joined(header, old))
    append_note(path, Note("note", "added later"))
    trace = open_trace(path)
    added = {("note", len(trace.notes) - 1): trace.notes[-1]}
    assert wrong(read_all(trace), truth | added) == []
    assert (trace.notes[-1].text, trace.damage) == ("added later", [])
    frames[-1] = replace(frames[-1], identity=bytes(range(8)))
    path.write_bytes(joined(header, [*old[:-1], frames[-1]]))
    assert ["is of another trace" in one.text for one in open_trace(path).damage] == [True]


def test_an_open_file_is_read_on_whatever_becomes_of_its_name(tmp_path, small):
    path = write_trace(tmp_path / "a.kvt", small)
    trace = open_trace(path)
    assert (trace.source.fate, trace.source.refresh()) == ("", False)
    path.rename(tmp_path / "b.kvt")
    assert trace.source.fate == "a.kvt was deleted or renamed; shown is what was opened"
    path.write_bytes(b"something else")
    assert trace.source.fate == "a.kvt is another file now; shown is the one that was opened"
    again = Trace(trace.source.again())
    assert np.array_equal(again.queries(1, 0), trace.queries(1, 0))
    assert (again.numbers, list(again.damage)) == (trace.numbers, [])


def test_a_phase_that_is_no_word_of_ours_never_reaches_a_screen(tmp_path, small):
    path = write_trace(tmp_path / "a.kvt", small)
    _, frames = split(path)
    step = next(frame for frame in frames if frame.kind == Kind.STEP)
    made = replace(step, json=step.json.replace(b'"decode"', b'"\\u001b[2J"'))
    made = replace(made, json=made.json.replace(b'"prefill"', b'"\\u001b[2J"'))
    kept = [made if frame is step else frame for frame in frames if frame.kind != Kind.INDEX]
    path.write_bytes(joined(pack_header(1), kept))
    trace = open_trace(path)
    assert [one.text for one in trace.damage if "unknown phase '\\x1b[2J'" in one.text]
    assert len(trace) == len(small) - 1


def test_nothing_but_a_hole_behind_a_trace_is_passed_over_at_once(tmp_path, small):
    path = killed(tmp_path / "a.kvt", small)
    truth = read_all(open_trace(path))
    os.truncate(path, 1 << 40)
    trace = open_trace(path)
    assert wrong(read_all(trace), truth) == []
    assert trace.numbers == small.numbers


def test_rows_that_nobody_looked_at_are_described_as_damaged(tmp_path, small):
    path = write_trace(tmp_path / "a.kvt", small)
    raw = bytearray(path.read_bytes())
    _, frames = split(path)
    steps = [frame for frame in frames if frame.kind == Kind.STEP]
    prefill = next(frame for frame in frames if frame.kind == Kind.ROWS)
    for frame in (prefill, steps[-1]):
        raw[frame.offset + frame.head().payload_start] ^= 1
    assert describe(path).damage == ()
    path.write_bytes(raw)
    told = describe(path).damage
    assert any("step 0, layer 0" in text for text in told)
    assert any("step 2, layer 0, queries: damaged" in text for text in told)


def test_who_waits_for_a_description_hears_how_far_it_is(tmp_path, small):
    shares = []
    describe(write_trace(tmp_path / "a.kvt", small), shares.append)
    assert shares == [step / len(small) for step in range(len(small))]


def test_damage_in_the_head_of_a_closed_trace_leaves_all_its_steps(tmp_path, small):
    path = write_trace(tmp_path / "a.kvt", small)
    truth = read_all(open_trace(path))
    raw = bytearray(path.read_bytes())
    raw[HEADER_BYTES + HEAD_BYTES + 9] ^= 1
    path.write_bytes(raw)
    trace = open_trace(path)
    assert wrong(read_all(trace), truth) == []
    assert trace.numbers == small.numbers
    assert [one.offset for one in trace.damage] == [HEADER_BYTES]


@pytest.mark.parametrize("shape", [[1, 4, 0], [1, 4, 1], [2, 4, 2], [0, 4, 0]])
def test_a_comparison_of_other_sites_and_heads_than_there_are_is_no_comparison(
    tmp_path, small, shape
):
    path = write_trace(tmp_path / "a.kvt", small)
    _, frames = split(path)
    lane = next(frame for frame in frames if frame.kind == Kind.LANE)
    told = json.loads(lane.json)
    made = replace(lane, json=json.dumps({**told, "shape": shape}).encode())
    kept = [made if one is lane else one for one in frames if one.kind != Kind.INDEX]
    path.write_bytes(joined(pack_header(1), kept))
    trace = open_trace(path)
    if shape == [0, 4, 0]:
        assert np.isnan(divergence(trace, told["step"])).all()
        return
    for _ in range(2):
        with pytest.raises(TraceError, match="a comparison that can't be"):
            trace.compared(told["step"])
    what = f"step {told['step']}, comparison with the recomputed lane: damaged"
    assert [one.text for one in trace.damage if "comparison" in one.text] == [what]
