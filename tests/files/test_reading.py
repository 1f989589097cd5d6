"""What was written is what is read: every dtype, mask, batch and length; also while it grows."""

import os
import signal

import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from builders.raw_frames import split
from builders.reading import read_all, same, wrong
from builders.written import pass_of, rows_of, write_trace
from kvtrace.errors import MissingError, TraceError
from kvtrace.files import StepRows, open_trace
from kvtrace.files.reading.frames import FrameFile
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import (
    CacheLayer,
    CacheStep,
    Ending,
    Mask,
    Meta,
    ModelCard,
    Note,
    Run,
    Site,
    SiteStep,
    Step,
    Tensor,
)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(prompt=8, decode=130),
        Shape(prompt=200, decode=3),
        Shape(window=4, decode=80),
        Shape(layers=1, heads=1, kv_heads=1, dim=1, prompt=1, decode=0),
    ],
)
def test_everything_that_was_written_is_read_back(tmp_path, shape):
    truth = synthetic_trace(shape)
    truth.source.notes.append(Note("finding", "a head looks up", step=1, site=0, head=1))
    expected = read_all(truth)
    trace = open_trace(write_trace(tmp_path / "a.kvt", truth))
    found = read_all(trace)
    assert trace.damage == []
    texts = {address for address in expected if address[0] == "text"}
    different = [
        address
        for address in expected.keys() - texts
        if address[0] != "cells" and not same(found[address], expected[address])
    ]
    assert different == []
    assert wrong(found, expected) == []
    for layer in range(shape.layers):
        assert (trace.source.writes(layer) == truth.source.writes(layer)).all()
        for number in trace.numbers:
            view, known = trace.cache(number, layer), truth.cache(number, layer)
            assert all(same(getattr(view, f), getattr(known, f)) for f in view.__slots__)
            head = trace.cache(number, layer, head=shape.kv_heads - 1)
            assert same(head.values, known.values[-1:])


def test_without_its_index_a_trace_reads_the_same(tmp_path):
    truth = synthetic_trace(Shape(prompt=70, decode=70))
    path = write_trace(tmp_path / "a.kvt", truth)
    with_index = read_all(open_trace(path))
    with path.open("r+b") as file:
        file.seek(16)
        file.write(bytes(48))
    without = read_all(open_trace(path))
    assert with_index.keys() == without.keys()
    assert [a for a in without if not same(with_index[a], without[a])] == []


def batch(number, site_new=None):
    """A step of two sequences, K and V in bfloat16, with a full mask and a bias."""
    rng = np.random.default_rng(number)
    run = (Run(0, 3 + number, 0, -1), Run(100, 0, 3, 2))
    step = Step(
        number=number,
        phase="decode",
        parent=None,
        tokens=((1, 2), (3, 4)),
        positions=((0, 1), (-1, 0)),
        chosen=(5, None),
        caches=(CacheStep((1,), 4 * number, 2, (run, run), (run, ()), 0, 2, rewritten=1),),
        sites=(SiteStep((0,), Mask(full=True, bias=True), (0.5,), (1.0,), (3,), new=site_new),),
        texts={1: "a\ud800", 2: "\x1b[31m", -3: ""},
        elapsed_ns=2**53 + 1,
    )
    new = 2 if site_new is None else site_new
    rows = StepRows(
        {0: rng.standard_normal((2, 4, new, 3)).astype("f2")},
        {0: rng.standard_normal((2, 4, new, 5)).astype("f2")},
        {1: rng.integers(0, 2**16, (2, 2, 2, 3)).astype("<u2")},
        {1: rng.integers(0, 2**16, (2, 2, 2, 5)).astype("<u2")},
        {0: rng.integers(0, 2, (2, 1, new, 7)).astype("u1")},
        {0: rng.standard_normal((1, 4, 1, 7)).astype("f4")},
    )
    return step, rows


BATCH_META = Meta(
    ModelCard("m", "M"),
    sites=(Site(0, "enc", 0, 0, "encoder", 4, 2, 3, 5, 0.5, 1, dtype="float16"),),
    cache_layers=(
        CacheLayer(0, 0, "derived", 1, 1, 1, dtype="float8_e5m2"),
        CacheLayer(1, 0, "dynamic", 2, 3, 5, dtype="bfloat16"),
    ),
)


@pytest.mark.parametrize("site_new", [None, 3, 11, 70])
def test_batches_masks_biases_and_other_row_counts_keep_their_bits(tmp_path, site_new):
    steps = [batch(number, site_new) for number in range(40)]
    with TraceWriter(tmp_path / "a.kvt", BATCH_META) as writer:
        for step, rows in steps:
            writer.append(step, rows)
    source = open_trace(tmp_path / "a.kvt").source
    for step, rows in steps:
        number = step.number
        assert source.step(number) == step
        for tensor, held in ((Tensor.QUERIES, rows.queries), (Tensor.OUTPUT, rows.output)):
            assert same(source.site_rows(number, 0, tensor, None), held[0])
            assert same(source.site_rows(number, 0, tensor, 2), held[0][:, 2:3])
        assert same(source.full_mask(number, 0), rows.masks[0])
        assert same(source.bias(number, 0), rows.biases[0])
        for tensor, held in ((Tensor.KEYS, rows.keys), (Tensor.VALUES, rows.values)):
            cells = held[1].swapaxes(0, 1).reshape(2, 4, -1)
            assert same(source.cells(1, tensor, 4 * number, 4, None), cells)
            assert same(source.cells(1, tensor, 4 * number + 1, 2, 1), cells[1:, 1:3])
    assert source.token_text(-3) == ""
    assert source.token_text(1) == "a\ud800"
    assert source.token_text(99) is None


def test_sites_may_come_later(tmp_path):
    first = replace(BATCH_META, sites=(), cache_layers=())
    step, rows = batch(1)
    empty = replace(step, number=0, caches=(), sites=())
    with TraceWriter(tmp_path / "a.kvt", first) as writer:
        writer.append(empty, StepRows({}, {}, {}, {}, {}, {}))
        reader = open_trace(tmp_path / "a.kvt")
        writer.extend(BATCH_META)
        writer.append(step, rows)
        assert reader.meta == first
        assert reader.source.refresh()
        assert reader.meta == BATCH_META
        assert same(reader.source.site_rows(1, 0, Tensor.OUTPUT, None), rows.output[0])


def test_what_is_absent_says_what_there_is(tmp_path):
    trace = open_trace(write_trace(tmp_path / "a.kvt", synthetic_trace()))
    with pytest.raises(MissingError, match=r"step 99 is not in this trace \(it has 7, 0 to 6\)"):
        trace.step(99)
    assert trace.compared(3, "referee") is None
    assert np.isnan(trace.cache(3, 0, lane="referee").keys).all()
    assert trace.rows(3, 0, Tensor.QUERIES, lane="referee") is None


def test_a_reader_in_another_process_sees_whole_steps_only(tmp_path):
    truth = synthetic_trace(Shape(layers=2, prompt=70, decode=150))
    path = tmp_path / "a.kvt"
    child = os.fork()
    if child == 0:
        try:
            write_trace(path, truth)
        finally:
            os._exit(0)
    trace, seen = None, 0
    signal.alarm(60)
    while trace is None or trace.ending is None:
        try:
            trace = trace or open_trace(path)
        except TraceError:
            # not there yet, or not yet with its META
            continue
        trace.source.refresh()
        assert trace.damage == []
        assert list(trace.numbers) == list(range(len(trace)))
        if len(trace) > seen:
            seen = len(trace)
            last = trace.numbers[-1]
            assert trace.step(last) == truth.step(last)
            assert (trace.cache(last, 1).values == truth.cache(last, 1).values).all()
            assert (trace.output(last, 0) == truth.output(last, 0)).all()
    signal.alarm(0)
    os.waitpid(child, 0)
    assert wrong(read_all(trace), read_all(truth)) == []


def test_a_torn_tail_is_waited_for_byte_by_byte(tmp_path):
    truth = synthetic_trace(Shape(layers=1, heads=2, kv_heads=1, dim=2, prompt=9, decode=2))
    good = write_trace(tmp_path / "a.kvt", truth).read_bytes()
    good = good[:16] + bytes(48) + good[64:]
    path, trace, seen = tmp_path / "b.kvt", None, 0
    with path.open("wb", buffering=0) as file:
        file.write(good[:4096])
        trace = open_trace(path)
        for start in range(4096, len(good), 7):
            file.write(good[start : start + 7])
            trace.source.refresh()
            assert trace.damage == []
            assert len(trace) >= seen
            seen = len(trace)
    assert trace.ending == truth.ending
    assert wrong(read_all(trace), read_all(truth)) == []


def test_a_bad_tail_is_said_and_forgotten_when_it_becomes_whole(tmp_path):
    truth = synthetic_trace(Shape(layers=1, heads=2, kv_heads=1, dim=2, prompt=9, decode=2))
    good = write_trace(tmp_path / "a.kvt", truth).read_bytes()
    good = good[:16] + bytes(48) + good[64:]
    path, whole = tmp_path / "b.kvt", split(tmp_path / "a.kvt")[1][-3].offset
    path.write_bytes(good[:whole] + bytes(len(good) - whole))
    trace = open_trace(path)
    assert [one.offset for one in trace.damage] == [whole]
    with path.open("r+b") as file:
        file.write(good)
        file.write(bytes(64))
    trace.source.refresh()
    assert trace.ending == truth.ending
    assert [one.offset for one in trace.damage] == [len(good)]
    assert wrong(read_all(trace), read_all(truth)) == []


def test_positions_that_a_pass_does_not_reach_are_nan_beside_those_it_does(tmp_path):
    truth = synthetic_trace(Shape(prompt=3, decode=3))
    step, rows = pass_of(truth, "recomputed", 0)
    moved = replace(step, positions=(tuple(range(2, 8)),))
    with TraceWriter(tmp_path / "a.kvt", truth.meta) as writer:
        for one in truth:
            writer.append(one, rows_of(truth, one))
            writer.compare(truth.compared(one.number))
        writer.keep_pass("recomputed", moved, rows)
    keys = open_trace(tmp_path / "a.kvt").cache(3, 0, lane="recomputed").keys
    assert np.isnan(keys).all(axis=(0, 2)).tolist() == [True, True, False, False, False, False]
    assert (keys[:, 2] == rows.keys[0][0][:, 0]).all()


def test_a_look_for_more_costs_what_was_added(tmp_path, monkeypatch):
    truth = synthetic_trace(Shape(layers=1, heads=1, kv_heads=1, dim=2, prompt=1, decode=600))
    reads = []
    plain = FrameFile._pread
    monkeypatch.setattr(FrameFile, "_pread", lambda *a: reads.append(a) or plain(*a))
    with TraceWriter(tmp_path / "a.kvt", truth.meta) as writer:
        writer.append(truth.step(0), rows_of(truth, truth.step(0)))
        trace = open_trace(tmp_path / "a.kvt")
        costs = []
        for step in list(truth)[1:]:
            writer.append(step, rows_of(truth, step))
            reads.clear()
            assert trace.source.refresh()
            assert not trace.source.refresh()
            trace.step(step.number)
            trace.source.cells(0, Tensor.KEYS, step.number, 1, None)
            costs.append(len(reads))
        assert max(costs) <= 12
        writer.end(Ending("length"))
    trace.source.refresh()
    assert trace.ending == Ending("length")


def test_opening_a_long_closed_trace_reads_no_step(tmp_path, monkeypatch):
    truth = synthetic_trace(Shape(layers=1, heads=1, kv_heads=1, dim=2, prompt=1, decode=600))
    path = write_trace(tmp_path / "a.kvt", truth)
    reads = []
    plain = FrameFile._pread
    monkeypatch.setattr(FrameFile, "_pread", lambda *a: reads.append(a) or plain(*a))
    trace = open_trace(path)
    assert len(trace) == 601
    assert len(reads) < 30


def test_a_prefix_over_tiles_is_read_in_few_pieces(tmp_path, monkeypatch):
    truth = synthetic_trace(Shape(layers=2, heads=4, kv_heads=4, dim=2, prompt=1, decode=511))
    trace = open_trace(write_trace(tmp_path / "a.kvt", truth))
    reads = []
    plain = FrameFile.read_into
    monkeypatch.setattr(FrameFile, "read_into", lambda *a: reads.append(a) or plain(*a))
    view = trace.cache(511, 1)
    assert (view.keys == truth.cache(511, 1).keys).all()
    assert len(reads) == 2 * 512 // 64
    reads.clear()
    trace.source.cells(1, Tensor.KEYS, 0, 512, 3)
    assert [sum(map(len, parts)) for _, _, parts in reads] == [64 * 2 * 4] * 8


def test_a_mask_or_bias_for_other_rows_than_were_attended_to_is_damage(tmp_path):
    with TraceWriter(tmp_path / "a.kvt", BATCH_META) as writer:
        for number in (1, 4):
            writer.append(*batch(number))
    trace = open_trace(tmp_path / "a.kvt")
    for read in (trace.visible, trace.bias):
        with pytest.raises(TraceError, match="for 7 rows, and 4 were attended to"):
            read(1, 0)
        read(4, 0)


def test_reads_that_give_less_than_was_asked_for_are_gone_on_with(tmp_path, monkeypatch):
    path = write_trace(tmp_path / "a.kvt", synthetic_trace(Shape(prompt=9, decode=2)))
    truth, whole = read_all(open_trace(path)), os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, at: whole(fd, min(count, 41), at))
    monkeypatch.setattr(os, "preadv", lambda _fd, _parts, _at: 0)
    found = read_all(open_trace(path))
    assert found.keys() == truth.keys()
    assert [address for address in found if not same(found[address], truth[address])] == []
