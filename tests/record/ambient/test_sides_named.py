"""Models of two sides that are never called: what attends is called by the path of its weights."""

import torch
from torch import nn

import kvtrace


class Mixing(nn.Module):
    """Attends in a method of its own."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def attend(self, x, read):
        q, k, v = (
            mix(one).unflatten(-1, (2, 8)).transpose(1, 2)
            for mix, one in ((self.q, x), (self.k, read), (self.v, read))
        )
        return ((q @ k.mT * 8**-0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.enc, self.dec = nn.ModuleList([Mixing()]), nn.ModuleList([Mixing()])

    def encode(self, ids):
        x = self.embed(ids)
        return x + self.enc[0].attend(x, x)

    def decode(self, ids):
        x = self.embed(ids)
        return x + self.dec[0].attend(x, x)


def test_the_side_that_encodes_is_no_text_that_goes_on(tmp_path):
    model = Translator()
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        model.encode(torch.tensor([[5, 9, 3, 7]]))
        model.decode(torch.tensor([[1, 8]]))
    sites = kvtrace.open(tmp_path / "a.kvt").meta.sites
    assert [(one.module, one.kind) for one in sites] == [("enc.0", "encoder"), ("dec.0", "self")]
