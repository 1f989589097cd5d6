"""Attention as homework, papers and old repositories spell it: odd, and legal.

Functions as in `attentions`: (q, k, v) → output of tensors [sequences, tokens, heads, dim].
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from builders.attentions import DIM, HEADS, SCALE, SLOPES, hidden, turned

TRIL = torch.tril(torch.ones(64, 64))
TABLE = nn.Parameter(torch.randn(HEADS, 64, generator=torch.Generator().manual_seed(3)))
TALK = nn.Parameter(torch.randn(HEADS, HEADS, generator=torch.Generator().manual_seed(4)))
TEMPERATURE = nn.Parameter(torch.full((HEADS, 1, 1), 2.0))


def tril_equals_zero(q, k, v):
    new, seq = q.shape[1], k.shape[1]
    q, k, v = turned(q, k, v)
    att = (q @ k.transpose(-2, -1)) * (1.0 / k.size(-1) ** 0.5)
    att = att.masked_fill(TRIL[seq - new : seq, :seq] == 0, float("-inf"))
    return (F.softmax(att, dim=-1) @ v).transpose(1, 2)


def softmax_with_dtype(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = (q @ k.mT) * SCALE + torch.triu(
        torch.full(m.shape, -torch.inf), m.shape[1] - m.shape[0] + 1
    )
    return (torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype) @ v).transpose(1, 2)


def divided_in_place(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = torch.matmul(q, k.transpose(-1, -2))
    scores.div_(DIM**0.5)
    scores.add_(m * -1e9)
    return torch.matmul(scores.softmax(-1), v).transpose(1, 2)


def assigned_by_mask(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = q @ k.mT * SCALE
    scores[:, :, m] = float("-inf")
    return (scores.softmax(-1) @ v).transpose(1, 2)


def reflected(q, k, v):
    """Each product is asked of its right operand, as for a left one that knows no tensors."""
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    weights = (k.mT.__rmatmul__(q) * SCALE).masked_fill(m, -torch.inf).softmax(-1)
    return v.__rmatmul__(weights).transpose(1, 2)


def tensordot_of_each_head(q, k, v):
    """For one sequence."""
    m, heads = hidden(q, k), []
    for mine, keys, values in zip(*(x[0].unbind(1) for x in (q, k, v)), strict=True):
        scores = torch.tensordot(mine, keys, dims=([1], [1])) * SCALE
        weights = scores.masked_fill(m, -torch.inf).softmax(-1)
        heads.append(torch.tensordot(weights, values, dims=1))
    return torch.stack(heads, 1)[None]


def stacked_keys_and_values(q, k, v):
    """One tensor [2, sequences, heads, seq, dim], as caches often are."""
    m = hidden(q, k)
    kv = torch.stack((k, v)).transpose(2, 3).contiguous()
    q = q.transpose(1, 2)
    scores = torch.einsum("bhqd,bhkd->bhqk", q, kv[0]) * SCALE
    weights = scores.masked_fill(m, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bhkd->bqhd", weights, kv[1])


def rearranged(q, k, v):
    """reshape, permute, flatten, as einops does it underneath."""
    b, m = q.shape[0], hidden(q, k)
    q, k, v = (x.reshape(b, -1, HEADS * DIM) for x in (q, k, v))
    q, k, v = (x.unflatten(-1, (HEADS, DIM)).permute(0, 2, 1, 3).flatten(0, 1) for x in (q, k, v))
    dots = torch.bmm(q, k.permute(0, 2, 1)) * SCALE
    attn = dots.masked_fill(m[None], -torch.finfo(dots.dtype).max).softmax(dim=-1)
    return torch.bmm(attn, v).unflatten(0, (b, HEADS)).permute(0, 2, 1, 3)


def without_sequences(q, k, v):
    """[tokens, heads, dim], as code for one sequence has it, sequence by sequence put together."""
    if len(q) > 1:
        return torch.cat(
            [without_sequences(*(x[n : n + 1] for x in (q, k, v))) for n in range(len(q))]
        )
    scores = torch.einsum("thd,shd->hts", q[0], k[0]) * SCALE
    weights = scores.masked_fill(hidden(q, k), -torch.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v[0])[None]


def vmapped_heads(q, k, v):
    m = hidden(q, k)

    def one(q, k, v):
        return ((q @ k.mT * SCALE).masked_fill(m, -torch.inf)).softmax(-1) @ v

    return torch.vmap(one, in_dims=2, out_dims=2)(q, k, v)


def baddbmm_without_input(q, k, v):
    b, t = q.shape[:2]
    m = hidden(q, k)
    q, k, v = (x.transpose(1, 2).reshape(b * HEADS, -1, DIM) for x in (q, k, v))
    empty = torch.empty(b * HEADS, t, k.shape[1]).fill_(7.0)
    scores = torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=SCALE)
    weights = scores.masked_fill(m, -torch.inf).softmax(-1)
    return torch.bmm(weights, v).view(b, HEADS, t, DIM).transpose(1, 2)


def logarithms(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = (q @ k.mT * SCALE).masked_fill(m, -torch.inf)
    return (F.log_softmax(scores, dim=-1).exp() @ v).transpose(1, 2)


def logsumexp(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = (q @ k.mT * SCALE).masked_fill(m, -torch.inf)
    return ((scores - scores.logsumexp(-1, keepdim=True)).exp() @ v).transpose(1, 2)


def exponentials_twice(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = (q @ k.mT * SCALE).masked_fill(m, -1e4)
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    return (weights @ v).transpose(1, 2)


def linear_over_keys(q, k, v):
    """F.linear with the keys as weight, a sequence and a head at a time."""
    m = hidden(q, k)
    out = torch.zeros_like(q)
    for head in range(HEADS):
        scores = F.linear(q[0, :, head], k[0, :, head]) * SCALE
        weights = scores.masked_fill(m, -torch.inf).softmax(-1)
        out[0, :, head] = weights @ v[0, :, head]
    return out


def other_primitives_when_decoding(q, k, v):
    if q.shape[1] > 1:
        q, k, v = turned(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    weights = (torch.einsum("bthd,bshd->bhts", q, k) * SCALE).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, v)


def gated_in_place(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    y = (q @ k.mT * SCALE).masked_fill(m, -torch.inf).softmax(-1) @ v
    y = y.transpose(1, 2)
    y *= 0.5
    return y


def alibi_after_mask(q, k, v):
    m = hidden(q, k)
    distance = torch.arange(m.shape[1]) - torch.arange(m.shape[1] - m.shape[0], m.shape[1])[:, None]
    q, k, v = turned(q, k, v)
    scores = (q @ k.mT * SCALE).masked_fill(m, -torch.inf)
    scores = scores + SLOPES[:, None, None] * distance
    return (scores.softmax(-1) @ v).transpose(1, 2)


def learned_relative_bias(q, k, v):
    m = hidden(q, k)
    new, seq = m.shape
    distance = (torch.arange(seq - new, seq)[:, None] - torch.arange(seq)).clamp(min=0)
    q, k, v = turned(q, k, v)
    scores = q @ k.mT + TABLE[:, distance][None]
    return (scores.masked_fill(m, -1e9).softmax(-1) @ v).transpose(1, 2)


def cosine(q, k, v):
    """Normalised queries and keys, a learned temperature per head."""
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
    scores = scores * TEMPERATURE.clamp(max=4.6).exp()
    return (scores.masked_fill(m, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def multi_query_squeezed(q, k, v):
    """All heads read the first one's keys and values, which have no axis of heads."""
    m = hidden(q, k)
    k, v = k[:, :, :1].squeeze(2), v[:, :, :1].squeeze(2)
    scores = torch.einsum("bthd,bsd->bhts", q, k) * SCALE
    weights = scores.masked_fill(m, -torch.inf).softmax(-1)
    return torch.einsum("bhts,bsd->bthd", weights, v)


def off_by_one(q, k, v):
    """softmax1: exp(x) / (1 + Σ exp): a sink of logit 0 for every head."""
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    e = (q @ k.mT * SCALE).masked_fill(m, -torch.inf).exp()
    return ((e / (1 + e.sum(-1, keepdim=True))) @ v).transpose(1, 2)


def sink_in_front(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = (q @ k.mT * SCALE).masked_fill(m, -torch.inf)
    zeros = torch.zeros(*scores.shape[:-1], 1)
    return (torch.cat((zeros, scores), -1).softmax(-1)[..., 1:] @ v).transpose(1, 2)


def gated_branches(q, k, v):
    """Attention over all rows and over the last four, gated, as native sparse attention does."""
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    whole = (q @ k.mT * SCALE).masked_fill(m, -torch.inf).softmax(-1) @ v
    k, v, m = k[:, :, -4:], v[:, :, -4:], m[:, -4:]
    near = (q @ k.mT * SCALE).masked_fill(m, -1e9).softmax(-1) @ v
    return (0.7 * whole + 0.3 * near).transpose(1, 2)


def query_chunks(q, k, v):
    """Two queries at a time, so that scores stay small."""
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    parts = []
    for start in range(0, q.shape[2], 2):
        scores = q[:, :, start : start + 2] @ k.mT * SCALE
        scores = scores.masked_fill(m[start : start + 2], -torch.inf)
        parts.append(scores.softmax(-1) @ v)
    return torch.cat(parts, dim=2).transpose(1, 2)


def talking_heads(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = torch.einsum("bhij,hg->bgij", q @ k.mT * SCALE, TALK)
    return (scores.masked_fill(m, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def differential(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    half = DIM // 2
    one = (q[..., :half] @ k[..., :half].mT).masked_fill(m, -torch.inf).softmax(-1)
    two = (q[..., half:] @ k[..., half:].mT).masked_fill(m, -torch.inf).softmax(-1)
    return ((one - 0.3 * two) @ v).transpose(1, 2)


def distances(q, k, v):
    """Scores are negative squared distances: no product of queries and keys."""
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = -torch.cdist(q, k).pow(2)
    return (scores.masked_fill(m, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def tiles(q, k, v):
    """An online softmax over tiles of keys, by hand."""
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    top = torch.full((*q.shape[:3], 1), -torch.inf)
    total, out = torch.zeros_like(top), torch.zeros_like(q)
    for start in range(0, k.shape[2], 2):
        tile = slice(start, start + 2)
        scores = (q @ k[:, :, tile].mT * SCALE).masked_fill(m[:, tile], -torch.inf)
        higher = torch.maximum(top, scores.amax(-1, keepdim=True))
        e, shrink = (scores - higher).exp(), (top - higher).exp()
        total, out, top = (
            total * shrink + e.sum(-1, keepdim=True),
            out * shrink + e @ v[:, :, tile],
            higher,
        )
    return (out / total).transpose(1, 2)


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    scores = (q @ k.transpose(-2, -1)) * 0.35355339059327373
    return torch.softmax(scores.masked_fill(m, float("-inf")), dim=-1) @ v


@cache
def _scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(_plain)


def scripted(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    return _scripted()(q, k, v, m).transpose(1, 2)


def local_blocks(q, k, v):
    """Each token attends to the four tokens up to itself, cut out with unfold."""
    q, k, v = turned(q, k, v)
    past = k.shape[2] - q.shape[2]
    k, v = (F.pad(x, (0, 0, 3, 0)).unfold(2, 4, 1)[:, :, past:] for x in (k, v))
    scores = torch.einsum("bhtd,bhtdw->bhtw", q, k) * SCALE
    places = torch.arange(past, past + q.shape[2])[:, None] - 3 + torch.arange(4)
    weights = scores.masked_fill(places < 0, -torch.inf).softmax(-1)
    return torch.einsum("bhtw,bhtdw->bhtd", weights, v).transpose(1, 2)


SAME = (
    tril_equals_zero,
    softmax_with_dtype,
    divided_in_place,
    assigned_by_mask,
    reflected,
    stacked_keys_and_values,
    rearranged,
    baddbmm_without_input,
    logarithms,
    logsumexp,
    exponentials_twice,
    other_primitives_when_decoding,
    scripted,
)
"""The numbers of plain attention."""
OTHER = (
    alibi_after_mask,
    learned_relative_bias,
    cosine,
    multi_query_squeezed,
    off_by_one,
    sink_in_front,
    gated_in_place,
)
"""Numbers of their own, one attention a layer, and all it takes to repeat it is recorded."""
PIECES = (gated_branches, query_chunks, differential)
"""Several attentions a layer, each recorded as what it is."""
TOLD = (talking_heads, distances, tiles, vmapped_heads)
"""Not softmax(q·kᵀ)·v, or out of sight: named, never passed off as something else."""
