"""What moves when later tokens follow: at once, or from layer to layer as rounding grows."""

import pytest
import torch

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.lanes.limits.moved import moved
from kvtrace.record.lanes.paths import Path

LIMIT = 1e-4
ROWS = torch.randn(1, 2, 6, 4, generator=torch.Generator().manual_seed(0))


def calls(far):
    """A layer for each number: how far its rows are off, of the largest."""
    out = []
    for layer, one in enumerate(far):
        rows = ROWS + one * ROWS.abs().max() * (torch.arange(6) == 2)[:, None]
        out.append(AttentionCall(f"layers.{layer}", 0, layer, "self", rows, rows, rows, rows, 0.5))
    return out


def found(*far):
    whole = calls([0.0] * len(far))
    one = moved(calls(far), whole, [Path(list(range(6)))], LIMIT)
    return None if one is None else one.call.layer


@pytest.mark.parametrize("start", [1e-7, 1e-6])
def test_rounding_that_grows_from_layer_to_layer_is_no_look_ahead(start):
    assert found(*(start * 8.0**layer for layer in range(8))) is None


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_rows_that_move_at_once_look_ahead(layer):
    assert found(*[1e-7] * layer, 1e-2, 1e-2) == layer


def test_rows_that_move_by_rounding_do_not_look_ahead():
    assert found(1e-7, 5e-5, 9e-5) is None


@pytest.mark.parametrize(("padding", "only"), [((0, 2), True), ((0, 0), False), ((2, 2), False)])
def test_rows_that_move_in_sequences_with_padding_alone_are_told(padding, only):
    rows = ROWS.expand(2, -1, -1, -1)
    off = rows.clone()
    off[1] *= 1.5
    short, whole = (
        AttentionCall("layers.0", 0, 0, "self", one, one, one, one, 0.5) for one in (off, rows)
    )
    paths = [Path(list(range(6)), one) for one in padding]
    assert moved([short], [whole], paths, LIMIT).padded is only
