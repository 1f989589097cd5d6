"""Loops that try several tokens at once and keep the rows of those that the model agrees with."""

import copy

import pytest
import torch
from transformers import DynamicCache

import kvtrace
from kvtrace.analysis.checks import EQUAL, check
from verify.bugs import llama

PROMPT = torch.tensor([[5, 9, 30, 7]])
TRIED = 4
RIGHT = (0, 2, 1, 0, 2)
"""How many of the drafted tokens of each step are those that the model takes."""


def loop(model, *, off=0, every=True, draws=False):
    """Keeps `off` rows too many, in all steps or in the second alone; `draws`: takes any token."""
    oracle, cache = copy.deepcopy(model), DynamicCache()
    draw = torch.Generator().manual_seed(2)

    def best(ids, rows, which=model):
        return which(ids, past_key_values=rows).logits.argmax(-1)

    token = best(PROMPT, cache)[:, -1:]
    for number, right in enumerate(RIGHT):
        ids, ahead = token, copy.deepcopy(cache)
        for _ in range(right):
            ids = torch.cat((ids, best(ids[:, -1:], ahead, oracle)), 1)
        wrong = (best(ids[:, -1:], ahead, oracle) + 7) % 300
        ids = torch.cat((ids, wrong.expand(1, TRIED - right - 1)), 1)
        token = best(ids, cache)[:, right : right + 1]
        if draws:
            token = torch.randint(0, 300, (1, 1), generator=draw)
        rejected = TRIED - right - 1 - (off if every or number == 1 else 0)
        if rejected:
            cache.crop(-rejected)


def judged(path, **how):
    model = llama()
    with torch.no_grad(), kvtrace.record(model, path):
        loop(model, **how)
    return check(kvtrace.open(path))


@pytest.mark.parametrize("draws", [False, True])
def test_rows_that_end_with_the_last_token_that_was_accepted_are_right(draws, tmp_path):
    report = judged(tmp_path / "a.kvt", draws=draws)
    assert (report.verdict, report.findings) == (EQUAL, ())


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize(("off", "name", "rows"), [(-1, "HISTORY-LOST", 0), (1, "STALE-CACHE", 2)])
def test_a_cache_that_is_cropped_elsewhere_is_named_though_all_lanes_agree(
    off, name, rows, every, tmp_path
):
    (found,) = judged(tmp_path / "a.kvt", off=off, every=every).findings
    assert (found.name, found.tensor) == (name, "k")
    if every:  # of the first step, the model takes none of what was drafted
        assert (found.step, found.layer) == (2, 0)
        said = f"sees {rows} of their rows" if rows else "none of their rows are there"
        assert said in found.evidence


def test_who_draws_tokens_is_not_judged_by_the_likeliest(tmp_path):
    report = judged(tmp_path / "a.kvt", off=-1, draws=True)
    assert (report.verdict, report.findings) == (EQUAL, ())


def test_a_step_of_several_tokens_knows_the_likeliest_after_each(tmp_path):
    model = llama()
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        cache = DynamicCache()
        model(PROMPT, past_key_values=cache)
        logits = model(torch.tensor([[3, 8, 1]]), past_key_values=cache).logits
        model(torch.tensor([[4]]), past_key_values=cache)
    trace = kvtrace.open(tmp_path / "a.kvt")
    likeliest = [trace.step(number).likeliest for number in range(3)]
    assert likeliest == [(), (tuple(logits[0].argmax(-1).tolist()),), ()]
