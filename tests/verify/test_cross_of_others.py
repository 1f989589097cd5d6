"""Rows of an encoder that a decoder's layer is given of another layer."""

import torch
from torch import Tensor, nn

import kvtrace
from kvtrace.analysis.checks import EQUAL

WIDTH, VOCAB = 32, 48


class Mix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.k(x)), self.split(self.v(x))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (4, -1)).transpose(1, 2)

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, ahead = self.split(self.q(x)), k.shape[2] - x.shape[1]
        mask = torch.ones(x.shape[1], k.shape[2], dtype=torch.bool).tril(max(ahead, 0))
        scores = (q @ k.mT / 8**0.5).masked_fill(~mask, -1e9)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Cross(Mix):
    times = 1.0

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (self.times * self.split(self.q(x)) @ k.mT / 8**0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.cross = Mix(), Cross()

    def forward(self, x: Tensor, memory: Tensor, cache, given=None) -> Tensor:
        k, v = self.own.rows(x)
        if cache is not None:
            if "self" in cache:
                k, v = (torch.cat(two, 2) for two in zip(cache["self"], (k, v), strict=True))
            cache["self"] = k, v
        x = x + self.own(x, k, v)
        rows = self.cross.rows(memory) if cache is None or "cross" not in cache else cache["cross"]
        if cache is not None:
            cache["cross"] = rows
        return x + self.cross(x, *(rows if given is None else given))


class Translator(nn.Module):
    """Its second layer may be given the rows of the first one: with a cache, or always."""

    def __init__(self, *, wrong: bool, shares: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wrong, self.shares = wrong, shares
        self.read, self.write = nn.Embedding(VOCAB, WIDTH), nn.Embedding(VOCAB, WIDTH)
        self.decoder = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, src: Tensor, tgt: Tensor, caches=None) -> Tensor:
        memory, x = self.read(src), self.write(tgt)
        for n, layer in enumerate(self.decoder):
            given = None
            if self.wrong and self.shares:
                layer.cross.times = 3.0 if caches is not None else 1.0
            if n and self.shares:
                given = self.decoder[0].cross.rows(memory)
            elif n and self.wrong and caches is not None:
                given = caches[0]["cross"]
            x = layer(x, memory, None if caches is None else caches[n], given)
        return self.head(x)


def checked(*, wrong: bool, shares: bool = False, made: type[Translator] = Translator):
    model = made(wrong=wrong, shares=shares)

    def run() -> None:
        caches, token = [{}, {}], torch.tensor([[1]])
        for _ in range(5):
            logits = model(torch.tensor([[5, 9, 30, 7, 41, 2]]), token, caches)
            token = logits[:, -1:].argmax(-1)

    return kvtrace.check(model, run=torch.no_grad()(run))


def test_rows_of_an_encoder_that_another_layer_keeps_are_that_layers():
    first = checked(wrong=True).findings[0]
    assert (first.name, first.step, first.tensor) == ("WRONG-LAYER", 0, "k"), first
    assert "layer 0" in first.evidence


def test_a_layer_that_keeps_its_own_rows_of_the_encoder_is_right():
    report = checked(wrong=False)
    assert (report.verdict, report.findings) == (EQUAL, ()), report


def test_rows_that_layers_share_by_design_are_no_other_layers():
    assert checked(wrong=False, shares=True).verdict == EQUAL
    names = {one.name for one in checked(wrong=True, shares=True).findings}
    assert names
    assert "WRONG-LAYER" not in names


class Scaling(Translator):
    """Queries of its second layer are three times as long in steps that read kept rows."""

    def forward(self, src: Tensor, tgt: Tensor, caches=None) -> Tensor:
        later = caches is not None and "cross" in caches[1]
        self.decoder[1].cross.times = 3.0 if later else 1.0
        return super().forward(src, tgt, caches)


def test_queries_to_an_encoder_that_are_scaled_are_told_apart_from_its_rows():
    first = checked(wrong=False, made=Scaling).findings[0]
    assert (first.name, first.step, first.tensor) == ("SCALE", 1, "q"), first
