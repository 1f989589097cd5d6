"""Engines that are given a pool of blocks, and with every token the slot for its row."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks import UNCHECKED, check

PROMPT, STEPS, BLOCK = (3, 1, 4, 1, 5, 9), 7, 4


class Engine(nn.Module):
    """One layer; two kv heads of four features, in blocks of four slots."""

    def __init__(self, gathers=False):
        super().__init__()
        torch.manual_seed(0)
        self.gathers = gathers
        self.embed, self.head = nn.Embedding(32, 8), nn.Linear(8, 32)
        self.place, self.qkv = nn.Embedding(32, 8), nn.Linear(8, 24)

    def forward(self, input_ids, positions, pool, slots, table, length, prefill):
        x = self.embed(input_ids) + self.place(positions)
        q, k, v = self.qkv(x).view(-1, 3, 2, 4).unbind(1)
        pool[0].view(-1, 2, 4)[slots], pool[1].view(-1, 2, 4)[slots] = k, v
        if self.gathers or not prefill:
            k, v = (one[table].reshape(-1, 2, 4)[: int(length)] for one in pool)
        q, k, v = (one.transpose(0, 1)[None] for one in (q, k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=prefill)
        return self.head(y[0].transpose(0, 1).flatten(1))


def serve(model, given=int, wrong=None):
    """Decode greedily; blocks are taken as they are needed, in no order."""
    pool, free, table, tokens = torch.zeros(2, 9, BLOCK, 2, 4), [7, 2, 5, 3], [], list(PROMPT)
    with torch.no_grad():
        for step in range(STEPS):
            before = len(tokens) - 1 if step else 0
            places = list(range(before, len(tokens)))
            while len(table) * BLOCK < len(tokens):
                table.append(free.pop(0))
            slots = [table[p // BLOCK] * BLOCK + p % BLOCK for p in places]
            slots = [one - (step == wrong) for one in slots]
            args = tokens[before:], places
            logits = model(
                *map(torch.tensor, args),
                pool,
                torch.tensor(slots),
                torch.tensor(table),
                given(len(tokens)),
                step == 0,
            )
            tokens.append(int(logits[-1].argmax()))


@pytest.mark.parametrize("given", [int, lambda length: torch.tensor([length])])
@pytest.mark.parametrize("gathers", [False, True])
def test_slots_tables_and_lengths_of_all_steps_are_joined_for_the_other_lane(
    tmp_path, gathers, given
):
    model = Engine(gathers)
    with kvtrace.record(model, tmp_path / "a.kvt"):
        serve(model, given)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.meta.lanes[0].reference == "replayed"
    assert [trace.cache_step(n, 0).length_before for n in (0, 1, 2)] == [0, 6, 7]
    assert not any((trace.compared(n).beyond > 0).any() for n in range(STEPS))


def test_a_row_that_is_written_to_another_slot_differs_from_the_other_lane(tmp_path):
    model = Engine()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        serve(model, wrong=3)
    trace = kvtrace.open(tmp_path / "a.kvt")
    differ = [bool((trace.compared(n).beyond > 0).any()) for n in range(STEPS)]
    assert differ[:4] == [False, False, False, True]


def test_a_pass_whose_rows_would_lie_in_one_slot_is_no_reference(tmp_path):
    model = Engine(gathers=True)
    with kvtrace.record(model, tmp_path / "a.kvt"):
        serve(model, wrong=2)  # the slot of the token before
    trace = kvtrace.open(tmp_path / "a.kvt")
    compared = [trace.compared(n) is not None for n in range(STEPS)]
    assert compared == [True, True, *[False] * (STEPS - 2)]
    report = check(trace)
    assert (report.verdict, report.findings) == (UNCHECKED, ())
    assert "`slots` gives token 7 the place of token 6, whose row is lost" in report.reason
