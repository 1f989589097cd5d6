"""Models that must be given tables of angles, which functions of their file make."""

import sys

import pytest
import torch
from torch import nn

from kvtrace.record.driving.choose import choose_drive
from kvtrace.record.driving.ways.roles import signature_of
from kvtrace.record.driving.ways.tables import tables
from kvtrace.record.driving.wish import Wish

PROMPT = tuple(range(3, 12))
HERE = sys.modules[__name__]


def precompute_angles_cos_sin(dim, end, theta):
    angles = torch.outer(torch.arange(end), theta ** -(torch.arange(0, dim, 2) / dim))
    return angles.cos(), angles.sin()


def build_rope_of_something_unknown(of_what):
    raise AssertionError("nobody knows what it wants")


class Rotated(nn.Module):
    """One layer of two heads; its keys are kept after they were rotated."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.n_heads, self.max_seq_len = 2, 64
        self.embed, self.qkv, self.head = nn.Embedding(64, 16), nn.Linear(16, 48), nn.Linear(16, 64)

    def decode(self, ids, cos, sin, past):
        q, k, v = self.qkv(self.embed(ids)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        q, k = (
            torch.cat((x * cos - y * sin, x * sin + y * cos), -1)
            for x, y in (one.chunk(2, -1) for one in (q, k))
        )
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        mask = torch.ones(q.shape[2], k.shape[2]).tril(k.shape[2] - q.shape[2]).bool()
        out = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        return self.head(out.transpose(1, 2).flatten(2)), (k, v)


class TakesItsRows(Rotated):
    def forward(self, ids, freqs_cis, start_pos=0, past_kv=None):
        rows = slice(start_pos, start_pos + ids.shape[1])
        return self.decode(ids, freqs_cis[0][rows], freqs_cis[1][rows], past_kv)


class IsGivenRows(Rotated):
    def forward(self, ids, sin, cos, past_kv=None):
        return self.decode(ids, cos, sin, past_kv)


SAID = {
    TakesItsRows: "freqs_cis=precompute_angles_cos_sin(…)",
    IsGivenRows: "sin=its rows of precompute_angles_cos_sin(…), "
    "cos=its rows of precompute_angles_cos_sin(…)",
}


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize("script", [HERE, None])
def test_a_model_that_asks_for_angles_is_given_those_of_its_file(kind, script):
    model = kind().eval()
    driven = choose_drive(model, Wish(PROMPT, vocabulary=64, script=script))
    assert SAID[kind] in driven.call
    assert "past_kv=cache" in driven.call
    cos, sin = precompute_angles_cos_sin(8, 64, 10000.0)
    expected = model.decode(torch.tensor([PROMPT]), cos[:9], sin[:9], None)[0][0, -1]
    driven.drive.step(PROMPT[:-1])
    assert torch.allclose(driven.drive.step(PROMPT), expected, atol=1e-5)


def test_no_table_is_made_for_what_asks_for_something_else():
    model = TakesItsRows()
    signature = signature_of(model)
    assert not list(tables(signature.ids, signature, model, HERE))
