"""Tiny models whose cache is right, and the same with one thing wrong."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

SIZES = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2}


def llama(cls=LlamaForCausalLM):
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=128,
        **SIZES,
    )
    return cls(config).eval()


class OffByOne(LlamaForCausalLM):
    """Every decode step is one position too early."""

    def forward(self, input_ids=None, past_key_values=None, position_ids=None, **more):
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if past and position_ids is None:
            position_ids = torch.arange(past, past + input_ids.shape[1])[None] - 1
        return super().forward(
            input_ids=input_ids,
            past_key_values=past_key_values,
            position_ids=position_ids,
            **more,
        )


class Unmasked(LlamaForCausalLM):
    """The padding mask is not used once there is a cache."""

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, **more):
        if past_key_values is not None and past_key_values.get_seq_length():
            attention_mask = None
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **more,
        )


def off_by_one():
    return llama(OffByOne)


def unmasked():
    return llama(Unmasked)


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=128, **SIZES)
    ).eval()


def recurrent():
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(num_hidden_layers=1, hidden_size=16, vocab_size=300)).eval()
