"""Steps of a continuous batch say whose they are, and rows say in which block they lie."""

from __future__ import annotations

from msgspec.structs import replace

from builders import synthetic_trace
from kvtrace.analysis.course import course
from kvtrace.analysis.rows.packed import part_text, pool_text
from kvtrace.analysis.summary import summary
from kvtrace.trace import Packed, PoolRun

POOL = ((PoolRun(12, 4), PoolRun(-1, 1)),)


def packed_trace(request="a"):
    """Its first step is the second of three requests in forward 7; its rows lie in block 3."""
    trace = synthetic_trace()
    first = trace.source.steps[0]
    groups = tuple(replace(one, pool=POOL) for one in first.caches)
    part = Packed(7, request, 1, 3, 2_000_000)
    trace.source.steps[0] = replace(first, packed=part, caches=groups)
    layers = tuple(replace(one, block_slots=4, capacity=32) for one in trace.meta.cache_layers)
    trace.source.meta = replace(trace.meta, cache_layers=layers)
    return trace


def test_a_step_names_its_request_and_its_place_in_the_forward():
    trace = packed_trace()
    assert summary(trace, 0).sentence.startswith("step 0 (prefill of a) computed 5 rows")
    assert part_text(trace.step(0)) == (
        "request a, 2 of 3 in forward 7 of the engine, which took 2.00 ms; the step's time is its "
        "share"
    )
    assert part_text(trace.step(1)) == ""


def test_a_row_says_its_block_and_its_slot_there():
    trace = packed_trace()
    assert [pool_text(trace, 0, 0, row) for row in (0, 3)] == ["block 3 slot 0", "block 3 slot 3"]
    assert pool_text(trace, 0, 0, 4) == "in no block"
    assert trace.cache(0, 0).pool.tolist() == [12, 13, 14, 15, -1]


def test_without_a_pool_nothing_is_said_of_one():
    trace = synthetic_trace()
    assert pool_text(trace, 0, 0, 0) == ""
    assert trace.cache(0, 0).pool.tolist() == []


def test_the_run_is_told_by_its_requests_and_forwards():
    assert course(packed_trace()) == "continuous batching: 1 request in 1 forward"


def test_the_name_of_a_request_is_made_safe():
    assert "\x1b" not in summary(packed_trace("\x1b]0;x\x07"), 0).sentence
