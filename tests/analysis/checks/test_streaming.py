"""A check of a long trace holds one step at a time, and tells what it finds before it is done."""

import tracemalloc

from builders import Shape, synthetic_trace
from builders.written import write_trace
from kvtrace.analysis.checks import check
from kvtrace.files import open_trace
from kvtrace.files.reading import lanes, steps
from kvtrace.trace import Tensor


def written(tmp_path, decode, wrong=None):
    trace = synthetic_trace(Shape(layers=2, heads=2, kv_heads=2, dim=16, decode=decode))
    if wrong is not None:
        trace.source.site_tensors[wrong, 1, Tensor.QUERIES] *= 4
        compared = trace.source.lane_steps["recomputed", wrong]
        compared.max_abs[1, Tensor.QUERIES] = compared.reference_max[1, Tensor.QUERIES]
    return write_trace(tmp_path / f"{decode}.kvt", trace)


def peak(path):
    """Bytes that a check holds at most."""
    trace = open_trace(path)
    tracemalloc.start()
    try:
        assert check(trace).ok
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_trace(tmp_path, monkeypatch):
    for module in (steps, lanes):
        monkeypatch.setattr(module, "_STEPS_KEPT", 32)
    monkeypatch.setattr(steps, "_FRAMES_KEPT", 32)
    short, long = written(tmp_path, 80), written(tmp_path, 240)
    peak(short)  # what is loaded once is no part of it
    assert long.stat().st_size > 2.5 * short.stat().st_size
    assert peak(long) < 1.25 * peak(short)


def test_the_first_finding_is_told_before_the_rest_is_read(tmp_path):
    trace = open_trace(written(tmp_path, 60, wrong=9))
    read, told = [], []
    original = trace.source.step
    trace.source.step = lambda number: read.append(number) or original(number)
    report = check(trace, on_finding=lambda one: told.append((one.name, max(read))))
    assert told == [("SCALE", 9)]
    assert report.steps == 61
