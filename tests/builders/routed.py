"""Tiny models that choose experts or slots by scores that are all but equal."""

import torch
from torch import nn
from transformers import AttentionInterface, LlamaForCausalLM

from verify.bugs import llama

OPTIONS = 4


class Routed(nn.Module):
    """An MLP of four experts: the first two tie at the top, and the way of calling decides.

    The scores of a single row are tilted one way, those of several rows the other: what rounding
    does now and then, at every token.
    """

    def __init__(self, tilt, select, size=32):
        super().__init__()
        self.gate = nn.Linear(size, OPTIONS, bias=False)
        self.experts = nn.Parameter(torch.randn(OPTIONS, size, size))
        self.tilt, self.select = tilt, select

    def forward(self, x):
        lead = torch.tensor([10.0, 10.0, 0.0, 0.0])
        way = torch.tensor([1.0, -1.0, 0.0, 0.0]) * (1 if x.shape[-2] == 1 else -1)
        scores = self.gate(x) * torch.tensor([0.0, 0.0, 1.0, 1.0]) + lead + self.tilt * way
        share = self.select(scores)
        return torch.einsum("bno,oij,bnj->bni", share, self.experts, x)


def by_topk(scores):
    best = scores.topk(1, dim=-1)
    return torch.zeros_like(scores).scatter(-1, best.indices, best.values.sigmoid())


def by_argmax(scores):
    return torch.nn.functional.one_hot(scores.argmax(-1), OPTIONS).to(scores.dtype)


def by_max(scores):
    values, indices = torch.max(scores, dim=-1, keepdim=True)
    return torch.zeros_like(scores).scatter(-1, indices, values.sigmoid())


def by_order(scores):
    first = torch.argsort(scores, dim=-1, descending=True)[..., :1]
    return torch.zeros_like(scores).scatter(-1, first, 1.0)


def by_threshold(scores):
    share = scores.softmax(-1)
    return (share >= share.topk(1, dim=-1).values[..., -1:]).to(scores.dtype)


SELECTIONS = (by_topk, by_argmax, by_max, by_order, by_threshold)


def routed(tilt=1e-5, select=by_topk, cls=LlamaForCausalLM):
    """A llama whose first MLP has experts."""
    model = llama(cls)
    model.model.layers[0].mlp = Routed(tilt, select)
    return model.eval()


def late_in_second_layer(model):
    """The second layer's attention is given the position before, in decode steps."""

    def shift(module, args, kwargs):
        cos, _ = kwargs["position_embeddings"]
        if cos.shape[1] == 1:
            place = kwargs["past_key_values"].get_seq_length(0) - 2
            kwargs["position_embeddings"] = model.model.rotary_emb(cos, torch.tensor([[place]]))
        return args, kwargs

    model.model.layers[1].self_attn.register_forward_pre_hook(shift, with_kwargs=True)
    return model


def sparse(tilt=1e-5, mask_value=-torch.inf):
    """A llama that attends to the two best slots; slots 1 and 2 tie at the top."""

    def attend(module, query, key, value, mask, scaling=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        scores = query @ key.transpose(-1, -2) * scaling
        new, seq = scores.shape[-2:]
        hidden = torch.ones(new, seq, dtype=torch.bool).triu(seq - new + 1)
        way = tilt * (1 if new == 1 else -1)
        scores[..., 1], scores[..., 2] = 5.0 + way, 5.0 - way
        scores[..., 0] = 9.0
        scores = scores.masked_fill(hidden, mask_value)
        least = scores.topk(min(2, seq), dim=-1).values[..., -1:]
        weights = scores.masked_fill(scores < least, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    AttentionInterface.register("two_best", attend)
    model = llama()
    model.config._attn_implementation = "two_best"
    return model
