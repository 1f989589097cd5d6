import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from builders.latents import latent_trace
from kvtrace.analysis.rows.kept import kept
from kvtrace.trace import Tensor


def test_a_window_keeps_less_than_was_attended_to():
    trace = synthetic_trace(Shape(prompt=5, decode=4, window=4))
    attended = trace.cache(4, 1)
    found = kept(trace, 4, 1)
    lost = attended.keys.shape[1] - found.rows.cells.size
    assert lost == sum(run.count for run in trace.cache_step(4, 1).attended[0]) - sum(
        run.count for run in trace.cache_step(4, 1).kept[0]
    )
    values = found.values(trace, Tensor.KEYS, 1)
    assert np.array_equal(values, attended.keys[1, lost:])


@pytest.fixture
def latent():
    return latent_trace()


def test_latents_are_what_is_kept_of_derived_rows(latent):
    found = kept(latent, 2, 0)
    assert found.latent
    expected = latent.source.cell_tensors[1, Tensor.VALUES][0, :7]
    assert np.array_equal(found.values(latent, Tensor.VALUES, kv_head=1), expected)
    assert found.rows.positions.tolist() == list(range(7))


def test_rows_that_are_never_kept_are_none(latent):
    meta = latent.meta
    latent.source.meta = replace(meta, cache_layers=meta.cache_layers[:1])
    assert kept(latent, 2, 0) is None
