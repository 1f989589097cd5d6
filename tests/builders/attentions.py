"""One attention, spelled in many ways, and the plain calculation they all must equal.

Each spelling is a function (q, k, v) → output of tensors [sequences, tokens, heads, dim]; the
model around it is always the same, so what it consumed is known beforehand.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from msgspec import Struct
from torch import nn

HEADS, DIM, WIDTH, VOCAB = 4, 8, 32, 50
SCALE = DIM**-0.5
SINKS = torch.tensor([0.5, -1.0, 0.0, 2.0])
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])


def hidden(q, k):
    """True where a key lies in the future, [new, seq]."""
    new, seq = q.shape[1], k.shape[1]
    return torch.ones(new, seq, dtype=torch.bool).triu(seq - new + 1)


def turned(*tensors):
    """[sequences, heads, tokens, dim]."""
    return [x.transpose(1, 2) for x in tensors]


def matmul(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = (q @ k.transpose(-2, -1)) / DIM**0.5
    return (F.softmax(scores.masked_fill(m, float("-inf")), -1) @ v).transpose(1, 2)


def folded_scale(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q * SCALE, k, v)
    scores = torch.matmul(q, k.mT) + torch.zeros(m.shape).masked_fill(m, -1e9)
    return torch.matmul(nn.Softmax(dim=-1)(scores), v).transpose(1, 2)


def in_place(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = torch.matmul(q, k.transpose(2, 3))
    scores *= SCALE
    scores.masked_fill_(m, torch.finfo(scores.dtype).min)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)


def einsum(q, k, v):
    scores = torch.einsum("bthd,bshd->bhts", q, k) * SCALE
    weights = torch.where(hidden(q, k), -torch.inf, scores).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, v)


def einsum_implicit(q, k, v):
    q, k, v = turned(q, k, v)
    scores = torch.einsum("...td,...sd->...ts", [q, k]).div(DIM**0.5)
    scores = scores.masked_fill(hidden(q.transpose(1, 2), k.transpose(1, 2)), -1e4)
    return torch.einsum("...ts,...sd->...td", [torch.softmax(scores, -1), v]).transpose(1, 2)


def einsum_in_sublists(q, k, v):
    scores = torch.einsum(q, [0, 1, 2, 3], k, [0, 4, 2, 3], [0, 2, 1, 4]) * SCALE
    weights = torch.where(hidden(q, k), -torch.inf, scores).softmax(-1)
    return torch.einsum(weights, [0, 2, 1, 4], v, [0, 4, 2, 3], [0, 1, 2, 3])


def with_spare_axes(q, k, v):
    m = hidden(q, k)
    q, k, v = [x[:, None] for x in turned(q, k, v)]
    scores = (q @ k.mT).squeeze(1)[..., None].select(-1, 0) * SCALE
    weights = scores.masked_fill(m, float("-inf")).softmax(-1)
    return (
        (weights[:, None] @ v).squeeze().reshape(weights.shape[:3] + v.shape[-1:]).transpose(1, 2)
    )


def keys_first(q, k, v):
    """Scores [batch, seq, new, heads], softmax over axis 1."""
    scores = torch.einsum("bshd,bthd->bsth", k, q) * SCALE
    scores = scores.masked_fill(hidden(q, k).T[None, :, :, None], -torch.inf)
    return torch.einsum("bsth,bshd->bthd", scores.softmax(1), v)


def transposed_scores(q, k, v):
    m = hidden(q, k).mT
    q, k, v = turned(q, k, v)
    scores = (k @ q.mT * SCALE).masked_fill(m, -torch.inf)
    weights = F.softmax(scores, dim=-2)
    return (v.mT @ weights).permute(0, 3, 1, 2)


def merged_bmm(q, k, v):
    b, t, s = q.shape[0], q.shape[1], k.shape[1]
    m = hidden(q, k)
    q, k, v = (x.transpose(1, 2).reshape(b * HEADS, -1, DIM) for x in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).view(b, HEADS, t, s) * SCALE
    weights = scores.masked_fill(m, -torch.inf).softmax(-1).view(b * HEADS, t, s)
    return torch.bmm(weights, v).view(b, HEADS, t, DIM).transpose(1, 2)


def baddbmm(q, k, v):
    b, t = q.shape[:2]
    bias = torch.zeros(1, *hidden(q, k).shape).masked_fill(hidden(q, k), -torch.inf)
    q, k, v = (x.transpose(1, 2).reshape(b * HEADS, -1, DIM) for x in (q, k, v))
    scores = torch.baddbmm(bias, q, k.mT, beta=1, alpha=SCALE)
    return torch.bmm(scores.softmax(2), v).view(b, HEADS, t, DIM).transpose(1, 2)


def head_loop(q, k, v):
    rows = []
    for head in range(HEADS):
        scores = (q[:, :, head] @ k[:, :, head].mT) * SCALE
        weights = scores.masked_fill(hidden(q, k), -torch.inf).softmax(-1)
        rows.append(weights @ v[:, :, head])
    return torch.stack(rows, dim=2)


def head_loop_into_buffer(q, k, v):
    out = torch.zeros_like(q)
    for head in range(HEADS):
        scores = (q[:, :, head] @ k[:, :, head].mT) * SCALE
        out[:, :, head] = scores.masked_fill(hidden(q, k), -1e9).softmax(-1) @ v[:, :, head]
    return out


def multiply_and_sum(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1) * SCALE
    weights = scores.masked_fill(m, -torch.inf).softmax(-1)
    return (weights.unsqueeze(-1) * v.unsqueeze(2)).sum(3).transpose(1, 2)


def exponentials(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = (q @ k.mT * SCALE).masked_fill(m, -torch.inf)
    e = torch.exp(scores - scores.max(-1, keepdim=True).values)
    return ((e / e.sum(-1, keepdim=True)) @ v).transpose(1, 2)


def divided_last(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    e = (q @ k.mT * SCALE).masked_fill(m, -torch.inf).exp()
    return ((e @ v) / e.sum(-1, keepdim=True)).transpose(1, 2)


def two_terms(q, k, v):
    """The first three features and the rest, scored apart and added."""
    scores = torch.einsum("bthd,bshd->bhts", q[..., :3], k[..., :3])
    scores = scores + torch.einsum("bthd,bshd->bhts", q[..., 3:], k[..., 3:])
    weights = (scores * SCALE).masked_fill(hidden(q, k), -torch.inf).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, v)


def upcast_with_dropout(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = (q @ k.mT * SCALE).float().masked_fill(m, -torch.inf)
    weights = F.softmax(scores, -1, dtype=torch.float32).type_as(v)
    return (F.dropout(weights, 0.5, training=False) @ v).transpose(1, 2)


def masked_after_softmax(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    weights = (q @ k.mT * SCALE).softmax(-1) * ~m
    return ((weights / weights.sum(-1, keepdim=True)) @ v).transpose(1, 2)


def with_sdpa(q, k, v):
    m = ~hidden(q, k)
    q, k, v = turned(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=m).transpose(1, 2)


def softcapped(q, k, v):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = torch.tanh(q @ k.mT * SCALE / 0.5) * 0.5
    return (scores.masked_fill(m, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def with_alibi(q, k, v):
    m = hidden(q, k)
    distance = torch.arange(m.shape[1]) - torch.arange(m.shape[1] - m.shape[0], m.shape[1])[:, None]
    q, k, v = turned(q, k, v)
    scores = q @ k.mT * SCALE + SLOPES[:, None, None] * distance
    return (scores.masked_fill(m, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def with_sinks(q, k, v, cut=lambda weights: weights[..., :-1]):
    m = hidden(q, k)
    q, k, v = turned(q, k, v)
    scores = (q @ k.mT * SCALE).masked_fill(m, -torch.inf)
    column = SINKS.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
    both = torch.cat([scores, column], -1)
    both = both - both.max(-1, keepdim=True).values
    return (cut(both.softmax(-1)) @ v).transpose(1, 2)


def with_sinks_narrowed_away(q, k, v):
    return with_sinks(q, k, v, lambda weights: weights.narrow(-1, 0, k.shape[1]))


PLAIN = (
    matmul,
    folded_scale,
    in_place,
    einsum,
    einsum_implicit,
    einsum_in_sublists,
    with_spare_axes,
    keys_first,
    transposed_scores,
    merged_bmm,
    baddbmm,
    head_loop,
    head_loop_into_buffer,
    multiply_and_sum,
    exponentials,
    divided_last,
    two_terms,
    upcast_with_dropout,
    masked_after_softmax,
    with_sdpa,
)
"""All calculate the same numbers."""


class Rows(Struct, frozen=True):
    """What one layer must have consumed and made, [sequences, heads, tokens, dim]."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    output: torch.Tensor


class Attention(nn.Module):
    """Projections around one spelling."""

    def __init__(self, spelling):
        super().__init__()
        self.spelling = spelling
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, past=None):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, HEADS, DIM).unbind(2)
        if past is not None:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        return self.out(self.spelling(q, k, v).reshape(b, t, WIDTH)), (k, v)


class Model(nn.Module):
    """Two layers of it."""

    def __init__(self, spelling, layers=2, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Attention(spelling) for _ in range(layers))
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, ids, past=None):
        x, kept = self.embed(ids), []
        for n, layer in enumerate(self.layers):
            y, rows = layer(x, None if past is None else past[n])
            kept.append(rows)
            x = x + y
        return self.head(x), kept

    @torch.no_grad()
    def expected(self, ids, past=None):
        """The rows of each layer, calculated plainly."""
        x, found = self.embed(ids), []
        for n, layer in enumerate(self.layers):
            b, t, _ = x.shape
            q, k, v = layer.qkv(x).view(b, t, 3, HEADS, DIM).unbind(2)
            if past is not None:
                k, v = torch.cat([past[n][0], k], 1), torch.cat([past[n][1], v], 1)
            out = layer.spelling(q, k, v)
            found.append(Rows(*turned(q, k, v, out)))
            x = x + layer(x, None if past is None else past[n])[0]
        return found


def token_ids(sequences, tokens, seed=1):
    return torch.randint(
        0, VOCAB, (sequences, tokens), generator=torch.Generator().manual_seed(seed)
    )
