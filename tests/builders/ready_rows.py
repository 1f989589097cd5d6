"""Encoder-decoders of one's own that hand their cross-attention ready keys and values."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

HEADS, WIDTH, LAYERS, PLACES = 4, 32, 2, 24
SOURCES = torch.tensor([[5, 9, 30, 7, 41, 2, 8], [44, 18, 3, 26, 11, 0, 0]])
STYLES = ("arguments", "attributes", "kernel", "stacked", "side by side", "recurrent", "late")
"""How rows of the source come to who attends, or who reads it; "late": made in the first step."""


class Attention(nn.Module):
    """Attends to the rows it is given, [batch, heads, seq, dim] or [batch, seq, heads, dim]."""

    def __init__(self, style):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.style, self.kept = style, None

    def split(self, x):
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def rows(self, x):
        return self.split(self.k(x)), self.split(self.v(x))

    def forward(self, x, rows, hidden):
        k, v = self.kept if rows is None else rows
        q = self.split(self.q(x))
        if self.style == "side by side":  # the batch, its rows, then heads
            if rows is not None and k.shape[2] == HEADS and k.shape[1] != HEADS:
                k, v = k.transpose(1, 2), v.transpose(1, 2)
            s = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
            y = torch.einsum("bhqk,bhkd->bhqd", s.masked_fill(hidden, -1e9).softmax(-1), v)
        elif self.style in ("stacked", "kernel"):
            y = scaled_dot_product_attention(q, k, v, attn_mask=~hidden)
        else:
            s = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(hidden, float("-inf"))
            y = s.softmax(-1) @ v
        return self.o(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Of an encoder; of a decoder where it reads another text too."""

    def __init__(self, style, reads=False):
        super().__init__()
        self.own = Attention(style)
        self.other = Attention(style) if reads else None
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x, hidden, keep=None, said=None, pad_mask=None):
        y = self.norms[0](x)
        rows = self.own.rows(y)
        x = x + self.own(y, keep(*rows) if keep else rows, hidden)
        if self.other is not None:
            x = x + self.other(self.norms[1](x), said, pad_mask)
        return x + self.down(self.up(self.norms[2](x)).relu())


class Translator(nn.Module):
    """Reads a source once, and decodes with rows made of it once.

    Its own rows are in a buffer of so much room, if any; it may forget in later steps what is
    padding of the source.
    """

    def __init__(self, style, room=0, forgets=False):
        super().__init__()
        self.style, self.room, self.forgets = style, room, forgets
        self.embed, self.places = nn.Embedding(60, WIDTH), nn.Embedding(PLACES, WIDTH)
        if style == "recurrent":
            self.encoder = nn.GRU(WIDTH, WIDTH, batch_first=True)
        else:
            self.encoder = nn.ModuleList(Layer(style) for _ in range(LAYERS))
        self.decoder = nn.ModuleList(Layer(style, reads=True) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 60)

    def embedded(self, ids, start=0):
        return self.embed(ids) + self.places(torch.arange(start, start + ids.shape[1]))

    def encode(self, ids):
        x, pads = self.embedded(ids), ids == 0
        if self.style == "recurrent":
            x = self.encoder(x)[0]
        else:
            for layer in self.encoder:
                x = layer(x, pads[:, None, None])
        if self.style == "late":
            return x, pads
        rows = [layer.other.rows(x) for layer in self.decoder]
        if self.style == "attributes":
            for layer, kept in zip(self.decoder, rows, strict=True):
                layer.other.kept = kept
            return [None] * LAYERS, pads
        if self.style == "stacked":
            return torch.stack([torch.stack(pair) for pair in rows]), pads
        if self.style == "side by side":
            rows = [[x.transpose(1, 2).contiguous() for x in pair] for pair in rows]
        return rows, pads

    def forward(self, ids, said, pads, past=None):
        past = {} if past is None else past
        start, new = past.get("length", 0), ids.shape[1]
        room = self.room or start + new
        if self.style == "late":
            said = past.setdefault("said", [layer.other.rows(said) for layer in self.decoder])
        if self.forgets and start:
            pads = torch.zeros_like(pads)
        hidden = torch.ones(new, room, dtype=torch.bool).triu(start + 1)[None, None]
        x = self.embedded(ids, start)
        for number, layer in enumerate(self.decoder):

            def keep(k, v, number=number):
                return self.kept(past, number, start, k, v)

            x = layer(x, hidden, keep, said[number], pads[:, None, None])
        past["length"] = start + new
        return self.head(x)

    def kept(self, past, number, start, *rows):
        if self.room:
            if number not in past:
                batch, heads, _, dim = rows[0].shape
                past[number] = rows[0].new_zeros(2, batch, heads, self.room, dim)
            past[number][:, :, :, start : start + rows[0].shape[2]] = torch.stack(rows)
        elif number in past:
            joined = zip(past[number], rows, strict=True)
            past[number] = tuple(torch.cat(pair, 2) for pair in joined)
        else:
            past[number] = rows
        return past[number][0], past[number][1]


def translator(style, **more):
    """A small one, whose attention differs from row to row."""
    torch.manual_seed(14)
    model = Translator(style, **more)
    for layer in model.decoder:
        for one in (layer.own, layer.other):
            one.q.weight.data *= 4
    return model.eval()


@torch.no_grad()
def translate(model, sources=SOURCES, prompt=1, steps=8):
    """Decode greedily behind a prompt of so many tokens."""
    said, pads = model.encode(sources)
    past, ids = {}, torch.arange(1, prompt + 1).expand(len(sources), -1)
    for _ in range(steps):
        ids = model(ids, said, pads, past)[:, -1:].argmax(-1)
