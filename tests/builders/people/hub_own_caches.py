"""PreTrainedModels whose preparation makes the cache: one that counts, one of lists of its own."""

import torch
from hub_prepared import PreparedConfig
from parts import CONTEXT, LAYERS, Core
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class Counting:
    """Rows of each layer in a buffer, and how many there are, which the preparation writes."""

    def __init__(self):
        self.rows, self.offset = {}, 0

    def update(self, k, v, layer):
        if layer not in self.rows:
            self.rows[layer] = k.new_zeros(2, *k.shape[:2], CONTEXT, k.shape[-1])
        end = self.offset + k.shape[2]
        self.rows[layer][:, :, :, self.offset : end] = torch.stack((k, v))
        return self.rows[layer][:, :, :, :end].unbind()


class Lists(DynamicCache):
    """As hybrids of the Hub have it: of no layers that transformers knows, so of length 0."""

    def __init__(self):
        super().__init__()
        self.keys, self.values = [None] * LAYERS, [None] * LAYERS

    def get_seq_length(self, layer_idx=0):
        return 0 if self.keys[layer_idx] is None else self.keys[layer_idx].shape[2]

    def update(self, k, v, layer):
        old = (self.keys[layer], self.values[layer])
        new = (k, v) if old[0] is None else (torch.cat((old[0], k), 2), torch.cat((old[1], v), 2))
        self.keys[layer], self.values[layer] = new
        return new


class InnerCross(nn.Module):
    """Attends to the cached rows of its own text."""

    def forward(self, core, layer, x, q, k, v):
        return core.mix(layer, x, q, k, v)


class Kept(PreTrainedModel, GenerationMixin):
    """Keeps what it is handed, and makes no cache by itself."""

    config_class = PreparedConfig

    def __init__(self, config):
        super().__init__(config)
        self.core = Core()
        self.inner_cross_attn = nn.ModuleList(InnerCross() for _ in range(LAYERS))

    def held(self, cache):
        return cache.offset if isinstance(cache, Counting) else cache.get_seq_length()

    def forward(self, input_ids, past_key_values=None, **rest):
        cache = past_key_values if isinstance(past_key_values, self.kind) else None
        start = 0 if cache is None else self.held(cache)
        x = self.core.embed(input_ids, torch.arange(start, start + input_ids.shape[1]))
        for n in range(LAYERS):
            q, k, v = self.core.project(n, x)
            if cache is not None:
                k, v = cache.update(k, v, n)
            x = self.inner_cross_attn[n](self.core, n, x, q, k, v)
        return CausalLMOutputWithPast(logits=self.core.head(x), past_key_values=cache)


class OfCounting(Kept):
    kind = Counting

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, **rest):
        if not isinstance(past_key_values, Counting):
            past_key_values = Counting()
        else:
            past_key_values.offset = input_ids.shape[1] - 1
            input_ids = input_ids[:, -1:]
        return {"input_ids": input_ids, "past_key_values": past_key_values}


class OfLists(Kept):
    kind = Lists

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, **rest):
        if not isinstance(past_key_values, Lists):
            past_key_values = Lists()
        new = input_ids[:, past_key_values.get_seq_length() :]
        return {"input_ids": new, "past_key_values": past_key_values}


def of_counting():
    return OfCounting(PreparedConfig(vocab_size=256))


def of_lists():
    return OfLists(PreparedConfig(vocab_size=256))
