"""A lane's own forward over whole paths, kept beside the steps it is compared with."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from builders.written import rows_of
from kvtrace.files import StepRows, open_trace
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import CacheStep, Mask, Run, SiteStep, Step, Tensor


def one_pass(trace, shape, seed=3):
    """A pass over every place of a synthetic trace, with rows of its own."""
    places = shape.prompt + shape.decode
    rng = np.random.default_rng(seed)
    layers = tuple(range(shape.layers))
    tokens = sum((step.tokens[0] for step in trace), ())
    run = (Run(0, places, 0, 0),)
    step = Step(
        number=0,
        phase="prefill",
        parent=None,
        tokens=(tokens,),
        positions=(tuple(range(places)),),
        chosen=(None,),
        caches=(CacheStep(layers, 0, places, (run,), (run,), 0, places),),
        sites=(
            SiteStep(
                layers, Mask(full=True, bias=True), (None,) * 3, (0.0,) * 3, (0,) * 3, new=places
            ),
        ),
    )

    def rows(heads):
        return {n: rng.standard_normal((1, heads, places, shape.dim)).astype("f4") for n in layers}

    mask = np.tri(places, dtype="u1")[None, None]
    bias = rng.standard_normal((1, shape.heads, 1, places)).astype("f4")
    return step, StepRows(
        rows(shape.heads),
        rows(shape.heads),
        rows(shape.kv_heads),
        rows(shape.kv_heads),
        dict.fromkeys(layers, mask),
        dict.fromkeys(layers, bias),
    )


@pytest.mark.parametrize("decode", [2, 70])
@pytest.mark.parametrize("closed", [True, False])
def test_a_step_finds_its_rows_in_the_pass_by_place(tmp_path, decode, closed):
    shape = Shape(decode=decode)
    trace = synthetic_trace(shape)
    step, rows = one_pass(trace, shape)
    writer = TraceWriter(tmp_path / "a.kvt", trace.meta)
    for one in trace:
        writer.append(one, rows_of(trace, one))
    writer.keep_pass("recomputed", step, rows)
    for one in trace:
        first = one.positions[0][0]
        compared = replace(trace.compared(one.number), passes=((0, 0, first),))
        writer.compare(compared)
    if closed:
        writer.close()
    read = open_trace(tmp_path / "a.kvt")
    last = len(trace) - 1
    found = read.reference(last)
    assert (found.first, found.new, found.places) == (4 + decode, 1, 5 + decode)
    for tensor in Tensor:
        kept = rows.of(tensor)[1][0]
        np.testing.assert_array_equal(found.rows(1, tensor), kept)
        np.testing.assert_array_equal(found.rows(1, tensor, head=1), kept[1:2])
    np.testing.assert_array_equal(read.reference(0).rows(1, Tensor.KEYS), rows.keys[1][0][:, :5])
    np.testing.assert_array_equal(read.reference(0).visible(1), np.tri(5, dtype=bool)[None])
    np.testing.assert_array_equal(found.visible(2), np.ones((1, 1, 5 + decode), bool))
    np.testing.assert_array_equal(found.bias(2), rows.biases[2][0])
    np.testing.assert_array_equal(
        read.rows(last, 1, Tensor.QUERIES), trace.rows(last, 1, Tensor.QUERIES)
    )
    writer.close()


def test_a_lane_without_a_pass_has_no_reference(tmp_path):
    trace = synthetic_trace()
    with TraceWriter(tmp_path / "a.kvt", trace.meta) as writer:
        for one in trace:
            writer.append(one, rows_of(trace, one))
            writer.compare(replace(trace.compared(one.number), passes=()))
    assert open_trace(tmp_path / "a.kvt").reference(1) is None
