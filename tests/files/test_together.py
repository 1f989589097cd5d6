"""Rows that lie together, and text that is put together: the same bytes as piece by piece."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from builders.written import rows_of
from kvtrace.errors import TraceError
from kvtrace.files import Stacked, StepRows, writer
from kvtrace.files.layout import NO_IDENTITY
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import Ending


@pytest.fixture(autouse=True)
def one_identity(monkeypatch):
    monkeypatch.setattr(writer, "new_identity", lambda: NO_IDENTITY)


def together(rows: StepRows) -> StepRows:
    """The same rows, in one array for each tensor."""

    def stacked(mapping):
        return Stacked(tuple(sorted(mapping)), np.stack([mapping[i] for i in sorted(mapping)]))

    parts = [stacked(part) for part in (rows.queries, rows.output, rows.keys, rows.values)]
    return StepRows(*parts, rows.masks, rows.biases)


def written(path, trace, arrange):
    with TraceWriter(path, trace.meta) as writer:
        for step in trace:
            writer.append(step, arrange(rows_of(trace, step)))
        writer.end(Ending("length"))
    return path.read_bytes()


def test_rows_that_lie_together_are_written_like_single_ones(tmp_path):
    # 70 decode steps fill a tile, and a prompt of 9 rows is cut into frames
    trace = synthetic_trace(Shape(layers=3, prompt=9, decode=70))
    single = written(tmp_path / "single.kvt", trace, lambda rows: rows)
    assert written(tmp_path / "whole.kvt", trace, together) == single


def test_steps_may_change_from_single_rows_to_rows_together_and_back(tmp_path):
    trace = synthetic_trace(Shape(layers=3, prompt=2, decode=70))
    single = written(tmp_path / "single.kvt", trace, lambda rows: rows)
    turns = iter(range(1000))
    mixed = written(
        tmp_path / "mixed.kvt", trace, lambda rows: rows if next(turns) % 3 else together(rows)
    )
    assert mixed == single


def test_rows_together_of_a_wrong_shape_are_refused_like_single_ones(tmp_path):
    trace = synthetic_trace(Shape(layers=2, prompt=2, decode=2))
    step = trace.step(0)
    rows = together(rows_of(trace, step))
    whole = rows.queries.whole
    cut = replace(rows, queries=Stacked(rows.queries.indices, whole[..., :-1].copy()))
    with (
        TraceWriter(tmp_path / "a.kvt", trace.meta) as writer,
        pytest.raises(TraceError, match="queries of layer 0"),
    ):
        writer.append(step, cut)


def test_a_stack_is_a_mapping_of_its_indices():
    stack = Stacked((2, 5), np.arange(2 * 1 * 1 * 1 * 2).reshape(2, 1, 1, 1, 2))
    assert (len(stack), list(stack), 5 in stack, 3 in stack) == (2, [2, 5], True, False)
    assert stack[5].tolist() == [[[[2, 3]]]]
    with pytest.raises(KeyError):
        stack[3]
