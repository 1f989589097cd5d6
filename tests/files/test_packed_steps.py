"""Steps of a continuous batch in a file: what was written is read, and nonsense is refused."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from builders.written import write_trace
from kvtrace.errors import TraceError
from kvtrace.files import open_trace, writer
from kvtrace.trace import Packed, PoolRun

PART = Packed(3, "a", 1, 2, 5000)
POOL = ((PoolRun(8, 3), PoolRun(-1, 2)),)


def packed(pool=POOL, part=PART):
    """A short run whose first step is a part of a packed forward."""
    trace = synthetic_trace(Shape(layers=1, heads=2, kv_heads=1, dim=2, decode=1))
    first = trace.source.steps[0]
    groups = tuple(replace(one, pool=pool) for one in first.caches)
    trace.source.steps[0] = replace(first, packed=part, caches=groups)
    layers = tuple(replace(one, block_slots=4, capacity=16) for one in trace.meta.cache_layers)
    trace.source.meta = replace(trace.meta, cache_layers=layers)
    return trace


def test_a_step_keeps_its_request_and_its_places_in_the_pool(tmp_path):
    written = packed()
    found = open_trace(write_trace(tmp_path / "a.kvt", written))
    assert found.step(0) == written.step(0)
    assert found.step(1).packed is None
    assert found.cache(0, 0).pool.tolist() == [8, 9, 10, -1, -1]
    assert found.meta.cache_layers[0].block_slots == 4


@pytest.mark.parametrize(
    ("pool", "part"),
    [
        (((PoolRun(8, 4),),), PART),
        (((PoolRun(8, -1), PoolRun(8, 6)),), PART),
        (((PoolRun(-2, 5),),), PART),
        ((*POOL, *POOL), PART),
        (POOL, replace(PART, place=2)),
        (POOL, replace(PART, forward=-1)),
    ],
)
def test_places_that_can_not_be_are_neither_written_nor_read(tmp_path, pool, part, monkeypatch):
    with pytest.raises(TraceError, match="can't be"):
        write_trace(tmp_path / "a.kvt", packed(pool, part))
    monkeypatch.setattr(writer, "check_step", lambda *_: None)
    path = write_trace(tmp_path / "b.kvt", packed(pool, part))
    with pytest.raises(TraceError, match="can't be"):
        open_trace(path).step(0)
