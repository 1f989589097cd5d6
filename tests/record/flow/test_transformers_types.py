"""Types of transformers that never ask the attention interface: the data flow sees them whole."""

import pytest
import torch

from builders.tiny_models import tiny_model
from kvtrace.record.flow import FlowWatch

BIASED = {"bloom", "mpt"}
LEVELS = {
    "bloom": 3,
    "codegen": 3,
    "falcon": 2,
    "gptj": 3,
    "gpt_neo": 3,
    "mpt": 3,
    "openai-gpt": 3,
    "xglm": 3,
    "xlnet": 3,
}
UNCACHED = {"openai-gpt", "xlnet"}


def steps(model, ids, token):
    """Logits of a prompt and of one more token through the cache, if there is one."""
    first = model(input_ids=ids, use_cache=True)
    cache = getattr(first, "past_key_values", None)
    if cache is None:
        return [first.logits]
    return [first.logits, model(input_ids=token, past_key_values=cache).logits]


@pytest.mark.parametrize("model_type", LEVELS)
def test_every_layer_of_prompt_and_decode_step_is_seen(model_type):
    model = tiny_model(model_type)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 100, (2, 7), generator=generator)
    token = torch.randint(3, 100, (2, 1), generator=generator)
    with torch.no_grad():
        plain = steps(model, ids, token)
        with FlowWatch(model, sink=(calls := []).append) as watch:
            seen = steps(model, ids, token)
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    assert watch.unseen == ()
    assert len(calls) == 4 * len(plain)
    assert len(plain) == (1 if model_type in UNCACHED else 2)
    assert [call.layer for call in calls] == [0, 1, 2, 3] * len(plain)
    assert {call.level for call in calls} == {LEVELS[model_type]}
    assert {(call.queries.shape[:2]) for call in calls} == {(2, 4)}
    assert all(call.keys.shape[2] == 7 for call in calls[:4])
    assert all(call.keys.shape[2] == 8 for call in calls[4:])
    assert all((call.bias is not None) == (model_type in BIASED | {"xlnet"}) for call in calls)


def test_falcon_has_one_kv_head():
    model = tiny_model("falcon")
    with torch.no_grad(), FlowWatch(model, sink=(calls := []).append):
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert {call.keys.shape[1] for call in calls} == {1}


def test_alibi_of_bloom_grows_with_the_position_of_the_key():
    model = tiny_model("bloom")
    with torch.no_grad(), FlowWatch(model, sink=(calls := []).append):
        model(input_ids=torch.tensor([[5, 6, 7, 8]]))
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])
    bias = calls[0].bias[0, :, -1]
    torch.testing.assert_close(bias, slopes[:, None] * torch.arange(4.0), rtol=0, atol=1e-5)


def test_sequences_that_padding_made_nan_do_not_hide_the_others():
    model = tiny_model("mpt", dtype=torch.float64)  # its rows that see nothing become NaN there
    ids, mask = torch.full((2, 6), 7), torch.ones(2, 6, dtype=torch.long)
    mask[1, :2] = 0
    with torch.no_grad(), FlowWatch(model, sink=(calls := []).append) as watch:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert bool(logits[1].isnan().any())
    assert bool(logits[0].isfinite().all())
    assert watch.unseen == ()
    assert len(calls) == 4
