"""A cache that hands out no rows, or something else in their place, keeps what nobody can see."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import kvtrace

PROMPT = torch.tensor([[1, 2, 3, 4, 5]])
NAME = "reads_its_cache_itself"

STANDS_FOR = {
    "no rows": lambda rows: rows[..., :0, :],
    "codes of all rows": lambda rows: rows.flatten(1).half().view(torch.uint8),
    "rows of fewer numbers": lambda rows: rows[..., :4],
    "nothing": lambda rows: torch.zeros(0),
}


class Hidden(DynamicLayer):
    """Keeps its rows; what attends takes them from here."""

    def __init__(self, stands_for):
        super().__init__()
        self._stands_for = stands_for

    def update(self, *args, **kwargs):
        self.held = super().update(*args, **kwargs)
        return tuple(self._stands_for(one) for one in self.held)


def _generate(model, stands_for):
    cache = Cache(layers=[Hidden(stands_for), Hidden(stands_for)])

    def attend(module, q, k, v, mask, scaling=None, **kwargs):
        k, v = (one.repeat_interleave(2, 1) for one in cache.layers[module.layer_idx].held)
        hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        hidden = hidden.triu(1 + k.shape[2] - q.shape[2])
        scores = (q @ k.transpose(-1, -2) * scaling).masked_fill(hidden, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    model.set_attn_implementation(NAME)
    return model.generate(
        PROMPT, past_key_values=cache, max_new_tokens=6, do_sample=False, pad_token_id=0
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    yield LlamaForCausalLM(config).eval()
    ALL_ATTENTION_FUNCTIONS._global_mapping.pop(NAME, None)


@pytest.mark.parametrize("stands_for", STANDS_FOR.values(), ids=STANDS_FOR)
def test_the_recording_goes_on_and_says_where_rows_were_not_seen(tmp_path, model, stands_for):
    expected = _generate(model, stands_for)
    with kvtrace.record(model, tmp_path / "a.kvt"):
        assert torch.equal(_generate(model, stands_for), expected)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert len(trace) == 6
    assert not trace.meta.sites
    said = [one.split(", ")[0] for one in trace.meta.unseen]
    assert said == [f"model.layers.{n}.self_attn: rows not seen" for n in range(2)]


def test_whatever_runs_without_rows_is_said_to_be_recorded_by_nothing(tmp_path, model):
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        _generate(model, STANDS_FOR["no rows"])
    assert not recording.report.traces
    assert "model.layers.0.self_attn: rows not seen" in recording.report.said[0]
