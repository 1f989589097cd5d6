"""A PreTrainedModel of one's own with transformers' cache."""

import torch
from parts import LAYERS, Core
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class MyConfig(PretrainedConfig):
    model_type = "mine"


class MyModel(PreTrainedModel):
    config_class = MyConfig

    def __init__(self, config):
        super().__init__(config)
        self.core = Core()

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None, **rest):
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache()
        start = past_key_values.get_seq_length() if past_key_values is not None else 0
        x = self.core.embed(input_ids, torch.arange(start, start + input_ids.shape[1]))
        for n in range(LAYERS):
            q, k, v = self.core.project(n, x)
            if past_key_values is not None:
                k, v = past_key_values.update(k, v, n)
            x = self.core.mix(n, x, q, k, v)
        logits = self.core.head(x)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)


def build():
    return MyModel(MyConfig(vocab_size=256))
