"""Texts that run side by side: forked from a prompt, under two conditions, branches of a tree."""

import torch
from torch import Tensor, nn

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL, UNCHECKED

WIDTH = 32
PROMPT = torch.tensor([[5, 9, 30, 7, 21, 14]])
PARENTS = (-1, 0, 0, 1, 2)

Rows = tuple[Tensor, Tensor]


class Layer(nn.Module):
    """Attends to its own text, and to another one where there is any."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.ask = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)

    def forward(
        self, x: Tensor, seen: Tensor, past: Rows | None, other: Tensor | None
    ) -> tuple[Tensor, Rows]:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        x = x + attend(3 * q, k, v, seen)
        if other is not None:
            q, *_ = self.ask(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            _, keys, values = self.ask(other).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            x = x + attend(3 * q, keys, values, torch.ones(1, 1, dtype=torch.bool))
        return x, (k, v)


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    scores = (q @ k.mT / 3).masked_fill(~seen, -1e9)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Lm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.tokens, self.places = nn.Embedding(WIDTH, WIDTH), nn.Embedding(64, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(
        self,
        ids: Tensor,
        past: list[Rows] | None = None,
        other: Tensor | None = None,
        where: Tensor | None = None,
        tree: Tensor | None = None,
    ) -> tuple[Tensor, list[Rows]]:
        new, old = ids.shape[1], 0 if past is None else past[0][0].shape[2]
        where = torch.arange(old, old + new) if where is None else where
        own = torch.ones(new, new, dtype=torch.bool).tril() if tree is None else tree
        seen = torch.cat([torch.ones(new, old, dtype=torch.bool), own], 1)
        x, kept = self.tokens(ids) + self.places(where), []
        for i, layer in enumerate(self.layers):
            x, rows = layer(x, seen, None if past is None else past[i], other)
            kept.append(rows)
        return x @ self.tokens.weight.T, kept


def fork(model: Lm, *, shared: bool = False) -> None:
    """Two continuations of one prompt, in turn; `shared`: with rows of the first."""
    logits, past = model(PROMPT)
    first, second = logits[:, -1].topk(2).indices[0].tolist()
    token, pasts = [first, second], [past, past]
    for _ in range(3):
        for one in (0, 1):
            logits, pasts[one] = model(torch.tensor([[token[one]]]), pasts[one])
            token[one] = int(logits[0, -1].argmax())
        if shared:
            pasts[1] = [pasts[0][0], *pasts[1][1:]]


def guided(model: Lm) -> None:
    """One text under two conditions, each with a cache of its own, begun with one token."""
    conditions = torch.randn(2, 1, 4, WIDTH, generator=torch.Generator().manual_seed(2))
    token, pasts = torch.tensor([[1]]), [None, None]
    for _ in range(5):
        both = []
        for one in (0, 1):
            logits, pasts[one] = model(token, pasts[one], conditions[one])
            both.append(logits[:, -1:])
        token = (2 * both[0] - both[1]).argmax(-1)


def speculated(model: Lm) -> None:
    """A small tree of drafts in one pass."""
    _, past = model(PROMPT)
    tree, depth = torch.eye(len(PARENTS), dtype=torch.bool), torch.tensor([0, 1, 1, 2, 2])
    for row, parent in enumerate(PARENTS):
        while parent >= 0:
            tree[row, parent], parent = True, PARENTS[parent]
    model(torch.tensor([[3, 8, 4, 11, 6]]), past, where=PROMPT.shape[1] + depth, tree=tree)


def test_forks_of_a_prompt_that_go_on_in_turn_are_equal_to_what_a_text_gives():
    model = Lm()
    assert kvtrace.check(model, run=lambda: fork(model)).verdict == EQUAL


def test_a_fork_that_goes_on_with_rows_of_the_other_is_told():
    model = Lm()
    assert kvtrace.check(model, run=lambda: fork(model, shared=True)).verdict == DIVERGED


def test_texts_of_two_conditions_that_begin_alike_are_kept_apart():
    model = Lm()
    report = kvtrace.check(model, run=lambda: guided(model))
    assert report.findings == ()
    assert report.verdict == EQUAL


def test_a_tree_of_drafts_is_known_by_its_mask_and_the_places_it_is_given():
    model = Lm()
    report = kvtrace.check(model, run=lambda: speculated(model))
    assert (report.verdict, report.findings) == (UNCHECKED, ())
    assert "step 1 is the first that was not" in report.reason
