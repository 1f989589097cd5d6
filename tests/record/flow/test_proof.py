"""When an attention call counts as repeated: rounding of long sums is, other rows are not."""

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace

from kvtrace.record.flow.calls.prove import FlowCall, refusal


def attended(rows, *, alike, dtype=torch.float32):
    """What a fused kernel makes of so many rows, all of them the same or none."""
    torch.manual_seed(0)
    queries = torch.randn(1, 4, 1, 16, dtype=dtype)
    shape = (1, 4, 1 if alike else rows, 16)
    keys, values = (torch.randn(shape, dtype=dtype).expand(1, 4, rows, 16) for _ in range(2))
    output = F.scaled_dot_product_attention(queries, keys.contiguous(), values.contiguous())
    return FlowCall(queries, keys, values, output, scale=0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("rows", [5, 700, 5000])
def test_a_call_over_many_rows_is_repeated_even_where_a_text_repeats_itself(rows, alike, dtype):
    assert refusal(attended(rows, alike=alike, dtype=dtype)) == ""


@pytest.mark.parametrize("rows", [5, 700])
def test_a_row_too_many_is_no_rounding(rows):
    call = attended(rows, alike=False)
    visible = torch.ones(1, 1, 1, rows, dtype=torch.bool)
    visible[..., 2] = False
    assert "differs from its output" in refusal(replace(call, visible=visible))


def test_another_scale_is_no_rounding_where_only_one_row_is_another():
    call = attended(700, alike=True)
    values, keys = call.values.clone(), call.keys.clone()
    values[:, :, 5], keys[:, :, 5] = values[:, :, 5] + 1, keys[:, :, 5] + 1
    output = F.scaled_dot_product_attention(call.queries, keys, values)
    call = replace(call, keys=keys, values=values, output=output)
    assert refusal(call) == ""
    assert "differs from its output" in refusal(replace(call, scale=0.5))
