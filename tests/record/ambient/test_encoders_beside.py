"""Decoders that read an encoder: in code of somebody's own every text has rows of its own."""

import torch
from torch import Tensor, nn

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL, check

WIDTH, HEADS, WORDS = 64, 4, 60
SOURCES = (
    torch.tensor([[5, 9, 12, 33, 7, 2, 0, 0], [8, 41, 3, 22, 17, 19, 6, 2]]),
    torch.tensor([[15, 29, 32, 13, 2, 0, 0, 0], [4, 4, 20, 9, 11, 7, 8, 2]]),
)


class Attention(nn.Module):
    def __init__(self, name: str, *, cross: bool = False) -> None:
        super().__init__()
        self.name, self.cross = name, cross
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2)

    def forward(self, x: Tensor, source: Tensor, hidden: Tensor, kept: dict | None) -> Tensor:
        q, before = self.split(self.q(x)), None if kept is None else kept.get(self.name)
        if self.cross and before is not None:
            k, v = before
        else:
            k, v = self.split(self.k(source)), self.split(self.v(source))
            if before is not None:
                k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        if kept is not None:
            kept[self.name] = k, v
        scores = torch.matmul(q, k.transpose(-1, -2)) / 4
        scores = scores.masked_fill(hidden, -1e9)
        return self.o(torch.matmul(scores.softmax(-1), v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, number: int, *, decodes: bool) -> None:
        super().__init__()
        self.own = Attention(f"s{number}")
        self.other = Attention(f"c{number}", cross=True) if decodes else None
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(
        self, x: Tensor, hidden: Tensor, memory: Tensor, pad: Tensor, kept: dict | None
    ) -> Tensor:
        x = self.norms[0](x + self.own(x, x, hidden, kept))
        return x if self.other is None else self.norms[1](x + self.other(x, memory, pad, kept))


class Translator(nn.Module):
    """Is never called: it has a method that encodes, and one that decodes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.tokens, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(20, WIDTH))
        self.enc = nn.ModuleList(Layer(n, decodes=False) for n in range(2))
        self.dec = nn.ModuleList(Layer(n, decodes=True) for n in range(2))
        self.out = nn.Linear(WIDTH, WORDS)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        pad = source == 0
        x = self.tokens(source) + self.places[: source.shape[1]]
        for layer in self.enc:
            x = layer(x, pad[:, None, None, :], x, pad, None)
        return x, pad

    def decode(self, ids: Tensor, memory: Tensor, pad: Tensor, kept: dict | None = None) -> Tensor:
        new, past = ids.shape[1], 0 if kept is None else kept.get("length", 0)
        if kept is not None:
            kept["length"] = past + new  # before the first look-up
        x = self.tokens(ids) + self.places[self.begin(past) : self.begin(past) + new]
        later = torch.ones(new, past + new, dtype=torch.bool).triu(past + 1)
        for layer in self.dec:
            x = layer(x, later, memory, pad[:, None, None, :], kept)
        return self.out(x)

    def begin(self, past: int) -> int:
        return past


class Restarting(Translator):
    def begin(self, past: int) -> int:
        return 0


@torch.no_grad()
def beams(model: Translator, source: Tensor, width: int = 3, steps: int = 6) -> None:
    memory, pad = (one.repeat_interleave(width, 0) for one in model.encode(source))
    ids, kept = torch.ones(len(memory), 1, dtype=torch.long), {}
    score = torch.tensor([0.0] + [-1e9] * (width - 1)).repeat(len(source))[:, None]
    for _ in range(steps):
        likely = model.decode(ids, memory, pad, kept)[:, -1].log_softmax(-1)
        score, best = (score + likely).view(len(source), -1).topk(width, -1)
        parent = (best // WORDS + torch.arange(len(source))[:, None] * width).view(-1)
        ids, score = (best % WORDS).view(-1, 1), score.view(-1, 1)
        for name, rows in kept.items():
            if name != "length":
                kept[name] = tuple(one.index_select(0, parent) for one in rows)


def _recorded(model, path):
    with kvtrace.record(path):
        for source in SOURCES:
            beams(model, source)
    return kvtrace.open(path)


def test_beams_of_two_batches_through_methods_equal_a_pass_beside_their_own_sources(tmp_path):
    trace = _recorded(Translator(), tmp_path / "a.kvt")
    assert check(trace).verdict == EQUAL, check(trace)


def test_what_a_method_does_wrong_is_found_though_it_writes_to_its_cache_first(tmp_path):
    report = check(_recorded(Restarting(), tmp_path / "a.kvt"))
    assert report.verdict == DIVERGED
    assert report.findings[0].name == "POSITION-EMBEDDING"


def test_a_text_begins_where_of_the_one_before_only_an_encoders_rows_are_replaced(tmp_path):
    class Called(Translator):
        def forward(self, ids: Tensor, memory: Tensor, kept: dict) -> Tensor:
            return self.decode(ids, memory, torch.zeros(memory.shape[:2], dtype=torch.bool), kept)

    model, path = Called(), tmp_path / "a.kvt"
    with torch.no_grad(), kvtrace.record(path):
        for _ in range(2):
            memory, kept = torch.randn(1, 7, WIDTH), {}
            ids = torch.tensor([[1, 2, 3]])
            for _ in range(4):
                ids = model(ids, memory, kept)[:, -1:].argmax(-1)
    trace = kvtrace.open(path)
    assert [step.number for step in trace if step.parent is None] == [0, 4]
    assert check(trace).verdict == EQUAL
