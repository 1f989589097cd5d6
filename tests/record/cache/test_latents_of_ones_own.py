"""Multi-head latent attention of people's own that makes keys and values anew from what it keeps.

Expected bytes are counted by hand: 8 numbers of latent and 4 of rotary key, 4 bytes each, for every
token of each of two layers.
"""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.cost.memory import cache_memory

HEADS, LATENT, ROTARY, PLAIN = 4, 8, 4, 8
KEPT = 4 * (LATENT + ROTARY)


def rotated(x, first):
    pairs = x.shape[-1] // 2
    places = torch.arange(first, first + x.shape[-2])[:, None]
    angle = places / 100 ** (torch.arange(pairs) / pairs)
    one, other = x[..., :pairs], x[..., pairs:]
    return torch.cat(
        (one * angle.cos() - other * angle.sin(), other * angle.cos() + one * angle.sin()), -1
    )


class Latent(nn.Module):
    """Keeps the latent and the rotary key, in arguments or, with room, in buffers."""

    def __init__(self, room, normed):
        super().__init__()
        self.query = nn.Linear(32, HEADS * (PLAIN + ROTARY))
        self.down, self.up = nn.Linear(32, LATENT + ROTARY), nn.Linear(LATENT, HEADS * 2 * PLAIN)
        self.norm, self.out = nn.LayerNorm(LATENT), nn.Linear(HEADS * PLAIN, 32)
        self.norm_late = normed == "late"
        nn.init.normal_(self.norm.weight)
        if room:
            self.register_buffer("latents", torch.zeros(2, room, LATENT), persistent=False)
            self.register_buffer("rotary", torch.zeros(2, room, ROTARY), persistent=False)

    def kept(self, latent, rotary, past, first):
        if hasattr(self, "latents"):
            rows, end = len(latent), first + latent.shape[1]
            self.latents[:rows, first:end], self.rotary[:rows, first:end] = latent, rotary
            return self.latents[:rows, :end], self.rotary[:rows, :end]
        if past is None:
            return latent, rotary
        return torch.cat((past[0], latent), 1), torch.cat((past[1], rotary), 1)

    def forward(self, x, past, first):
        q = self.query(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        q = torch.cat((q[..., :PLAIN], rotated(q[..., PLAIN:], first)), -1)
        latent, rotary = self.down(x).split((LATENT, ROTARY), -1)
        latent = latent if self.norm_late else self.norm(latent)
        latent, rotary = past = self.kept(latent, rotated(rotary, first), past, first)
        made = self.up(self.norm(latent) if self.norm_late else latent)
        k, v = made.unflatten(-1, (HEADS, -1)).transpose(1, 2).split(PLAIN, -1)
        k = torch.cat((k, rotary[:, None].expand(-1, HEADS, -1, -1)), -1)
        new, seq = x.shape[1], k.shape[2]
        scores = q @ k.mT / (PLAIN + ROTARY) ** 0.5
        later = torch.ones(new, seq, dtype=torch.bool).triu(seq - new + 1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2)), past


class Model(nn.Module):
    def __init__(self, room=0, normed="early"):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(50, 32), nn.Linear(32, 50)
        self.layers = nn.ModuleList(Latent(room, normed) for _ in range(2))

    def forward(self, ids, past=None, start=0):
        x, kept = self.embed(ids), []
        for n, layer in enumerate(self.layers):
            made, rows = layer(x, None if past is None else past[n], start)
            x, kept = x + made, [*kept, rows]
        return self.head(x), kept


def decoded(model, path, sequences=1):
    ids = torch.randint(50, (sequences, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), kvtrace.record(model, path):
        _, past = model(ids[:, :5])
        for n in range(5, 9):
            _, past = model(ids[:, n : n + 1], past, n)
    return kvtrace.open(path)


@pytest.mark.parametrize("normed", ["early", "late"])
@pytest.mark.parametrize("sequences", [1, 2])
def test_what_is_kept_is_named_and_counted_not_what_is_made_of_it(tmp_path, normed, sequences):
    trace = decoded(Model(normed=normed), tmp_path / "a.kvt", sequences)
    one, two = trace.meta.cache_layers
    assert one.where == (
        f"argument past[0][0] [{sequences}, rows, 8], argument past[0][1] [{sequences}, rows, 4]"
    )
    assert "made anew" in one.remark
    assert [one.row_bytes, two.row_bytes] == [KEPT, KEPT]
    memory = cache_memory(trace, 4)
    assert memory.token_bytes == 2 * KEPT
    assert memory.held_bytes == memory.measured_bytes == sequences * 9 * 2 * KEPT
    assert trace.cache(4, 0).keys.shape == (HEADS, 9, PLAIN + ROTARY)


def test_of_buffers_all_of_it_is_counted(tmp_path):
    trace = decoded(Model(room=16), tmp_path / "a.kvt")
    layer = trace.meta.cache_layers[0]
    assert (layer.kind, layer.capacity) == ("static", 16)
    assert layer.where == "layers.0.latents [2, 16, 8], layers.0.rotary [2, 16, 4]"
    assert trace.step(4).cost.cache_bytes == 2 * 16 * 2 * KEPT


class Hiding(Model):
    """Keeps its rows where nobody can look, and hands around others that are as long."""

    def __init__(self):
        super().__init__()
        self.kept = iter(())

    def forward(self, ids, past=None, start=0):
        held = next(self.kept, None)
        logits, held = super().forward(ids, held, start)
        self.kept = iter([held])
        rows = start + ids.shape[1]
        return logits, [torch.randn(1, rows, LATENT), torch.randn(1, rows, ROTARY)]


def test_rows_that_nothing_was_made_of_are_not_taken_for_it(tmp_path):
    layer = decoded(Hiding(), tmp_path / "a.kvt").meta.cache_layers[0]
    assert (layer.where, layer.latent_bytes) == ("", 0)
