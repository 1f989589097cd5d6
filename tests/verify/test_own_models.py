"""`kvtrace.check` of models whose code says little: classes, methods and parameters of any name."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL

WIDTH = 32
"""As many as there are tokens: shapes do not tell logits from hidden rows."""

PROMPT = [5, 9, 30, 7, 21, 14, 2, 12]


class Trail:
    """Keeps rows, and is no cache by its name."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None

    def put(self, rows: Tensor) -> Tensor:
        self.rows = rows if self.rows is None else torch.cat([self.rows, rows], 3)
        return self.rows

    def __len__(self) -> int:
        return 0 if self.rows is None else self.rows.shape[3]


class Lm(nn.Module):
    """One layer; more positions than tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.wpe = nn.Embedding(WIDTH, WIDTH), nn.Embedding(64, WIDTH)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor, trail: Trail | None = None) -> Tensor:
        new, past = ids.shape[1], 0 if trail is None else len(trail)
        x = self.tokens(ids) + self.wpe(torch.arange(new) + self.begin(past))
        q, *kv = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        k, v = torch.stack(kv) if trail is None else trail.put(torch.stack(kv))
        mask = torch.ones(new, past + new, dtype=torch.bool).tril(past)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.head(x + y.transpose(1, 2).flatten(2))

    def begin(self, past: int) -> int:
        return past


class Restarting(Lm):
    def begin(self, past: int) -> int:
        return 0


class Sized:
    """Room that only a method of the model knows how to ask for."""

    def __init__(self, heads: int, room: int, size: int) -> None:
        self.kv, self.n = torch.zeros(2, 1, heads, room, size), 0

    def at(self, kv: Tensor) -> Tensor:
        self.kv[:, :, :, self.n : self.n + kv.shape[3]] = kv
        self.n += kv.shape[3]
        return self.kv[:, :, :, : self.n]


class Allocating(Lm):
    def allocate(self, batch: int) -> Sized:
        return Sized(4, 64, 8)

    def forward(self, ids: Tensor, memory: Sized | None = None) -> Tensor:
        return super().forward(ids, memory and _Through(memory))


class _Through(Trail):
    def __init__(self, memory: Sized) -> None:
        self.memory = memory

    def put(self, rows: Tensor) -> Tensor:
        return self.memory.at(rows)

    def __len__(self) -> int:
        return self.memory.n


class Keyed(Lm):
    """Takes what `make_cache` of its file makes."""

    def forward(self, ids: Tensor, handed: object = None) -> Tensor:
        return super().forward(ids, None if handed is None else handed[Keyed])  # type: ignore[index]


def make_cache(model: nn.Module, batch: int, max_len: int) -> object:
    return {Keyed: Trail()} if isinstance(model, Keyed) else Trail()


def _only_trail(monkeypatch):
    monkeypatch.delitem(globals(), "make_cache")


def test_an_object_that_is_handed_rows_is_a_cache_whatever_its_class_is_called(monkeypatch):
    _only_trail(monkeypatch)
    report = kvtrace.check(Lm(), PROMPT, new_tokens=4, ways=())
    assert report.verdict == EQUAL, report


def test_a_wrong_cache_behind_a_name_that_says_nothing_is_driven_and_named(monkeypatch):
    _only_trail(monkeypatch)
    report = kvtrace.check(Restarting(), PROMPT, new_tokens=4, ways=())
    first = report.findings[0]
    assert report.verdict == DIVERGED
    assert (first.name, first.step, first.layer) == ("POSITION-EMBEDDING", 1, 0)


def test_a_method_that_allocates_is_asked_for_a_cache(monkeypatch):
    _only_trail(monkeypatch)
    report = kvtrace.check(Allocating(), PROMPT, new_tokens=4, ways=())
    assert report.verdict == EQUAL, report


def test_make_cache_in_the_file_of_the_class_is_used():
    report = kvtrace.check(Keyed(), PROMPT, new_tokens=4, ways=())
    assert report.verdict == EQUAL, report


class Grouped(nn.Module):
    """Two layers of grouped queries; one row at a time, kv heads are repeated in another order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.wpe = nn.Embedding(WIDTH, WIDTH), nn.Embedding(64, WIDTH)
        self.mixes = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor, past: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        start = 0 if past is None else past[0].shape[3]
        x = self.tokens(ids) + self.wpe(torch.arange(ids.shape[1]) + start)
        kept = []
        for n, mix in enumerate(self.mixes):
            heads = mix(x).unflatten(-1, (8, 8)).transpose(1, 2)
            q, rows = heads[:, :4], torch.stack(heads[:, 4:].chunk(2, 1))
            kept.append(rows if past is None else torch.cat([past[n], rows], 3))
            new, seq = ids.shape[1], kept[n].shape[3]
            wide = kept[n].repeat(1, 1, 2, 1, 1) if new == 1 else kept[n].repeat_interleave(2, 2)
            mask = torch.ones(new, seq, dtype=torch.bool).tril(seq - new)
            y = F.scaled_dot_product_attention(q, *wide, attn_mask=mask)
            x = x + y.transpose(1, 2).flatten(2)
        return self.head(x), kept


def test_a_layer_that_attends_in_another_shape_is_still_that_layer(monkeypatch):
    _only_trail(monkeypatch)
    report = kvtrace.check(Grouped(), PROMPT, new_tokens=3, ways=())
    assert report.verdict == DIVERGED, report
    first = report.findings[0]
    assert (first.name, first.step, first.layer) == ("HEAD-MAP", 1, 0)
    assert first.site == first.shown != 0
    assert first.at.startswith(f"1/{first.shown}/")
