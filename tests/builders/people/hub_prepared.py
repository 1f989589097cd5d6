"""A PreTrainedModel whose positions stand in its preparation alone; its cache is plain tuples."""

import torch
from parts import LAYERS, Core
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class PreparedConfig(PretrainedConfig):
    model_type = "prepared"


class Prepared(PreTrainedModel, GenerationMixin):
    config_class = PreparedConfig

    def __init__(self, config):
        super().__init__(config)
        self.core = Core()

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, is_first_pass=True, **rest
    ):
        places = attention_mask.cumsum(-1) - 1
        if not is_first_pass:
            input_ids, places = input_ids[:, -1:], places[:, -1:]
        return {
            "input_ids": input_ids,
            "position_ids": places,
            "past_key_values": past_key_values,
            "use_cache": rest.get("use_cache"),
        }

    def forward(self, input_ids, position_ids=None, past_key_values=None, use_cache=None):
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])
        cache = DynamicCache(past_key_values) if past_key_values is not None else DynamicCache()
        x = self.core.embed(input_ids, position_ids)
        for n in range(LAYERS):
            q, k, v = self.core.project(n, x)
            if use_cache:
                k, v = cache.update(k, v, n)
            x = self.core.mix(n, x, q, k, v)
        rows = tuple((one.keys, one.values) for one in cache.layers) if use_cache else None
        return CausalLMOutputWithPast(logits=self.core.head(x), past_key_values=rows)


def build():
    return Prepared(PreparedConfig(vocab_size=256))


class Outdated(Prepared):
    """Its preparation asks a cache of another transformers."""

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, **rest):
        raise AttributeError("a cache has no seen_tokens")


def build_outdated():
    return Outdated(PreparedConfig(vocab_size=256))
