"""Rows that stand for no single token, told by who sees them and by their neighbours."""

import torch

from kvtrace.trace import NO_TOKEN
from record.flow.test_rows import Site, joined, picked, rows


def summed_up(tokens, every):
    """Who sees what of `tokens` rows and of a summary of each `every` of them, behind."""
    count = tokens // every
    seen = torch.ones(tokens, tokens + count, dtype=torch.bool).tril()
    for summary in range(count):
        seen[:, tokens + summary] = torch.arange(tokens) >= (summary + 1) * every - 1
    return seen[None, None]


def places(step):
    return step.positions[0, step.slots].tolist()


def test_rows_behind_those_of_the_tokens_stand_for_none_of_them():
    step = Site().step(rows(7), 5, summed_up(5, 2), tokens=5)

    assert places(step) == [0, 1, 2, 3, 4, NO_TOKEN, NO_TOKEN + 1]
    assert step.at.tolist() == [0]


def test_a_new_row_is_what_its_left_neighbour_is():
    site, prompt = Site(), rows(7)
    site.step(prompt, 5, summed_up(5, 2), tokens=5)
    token, summary = rows(1), rows(1)
    fed = joined(joined(picked(prompt, range(1, 5)), token), picked(prompt, range(5, 7)))

    step = site.step(joined(fed, summary), tokens=1)

    assert places(step) == [1, 2, 3, 4, 5, NO_TOKEN, NO_TOKEN + 1, NO_TOKEN + 2]
    assert (step.at.tolist(), step.rows) == ([5], 2)


def test_summaries_alone_claim_no_token_and_the_text_goes_on():
    site, prompt = Site(), rows(2)
    site.step(prompt, 5, summed_up(5, 2)[..., 5:], tokens=5)

    first = site.step(joined(prompt, rows(1)), start=5, tokens=1)
    second = site.step(joined(prompt, rows(1)), start=6, tokens=1)

    assert places(first) == [NO_TOKEN, NO_TOKEN + 1, NO_TOKEN + 2]
    assert (first.at.tolist(), second.at.tolist()) == ([5], [6])


def test_the_last_rows_of_a_long_prompt_are_still_its_last_tokens():
    late = torch.ones(5, 3, dtype=torch.bool).tril(-2)[None, None]

    assert places(Site().step(rows(3), 5, late, tokens=5)) == [2, 3, 4]


def test_patches_that_are_as_many_as_queries_but_not_as_tokens_are_none():
    assert places(Site().step(rows(3), 3, tokens=9)) == [NO_TOKEN, NO_TOKEN + 1, NO_TOKEN + 2]
    assert places(Site().step(rows(3), 3, tokens=3)) == [0, 1, 2]


def after_learned(tokens, learned):
    """Who sees what of learned rows in front, which all see, and of the tokens behind them."""
    seen = torch.ones(tokens, learned + tokens, dtype=torch.bool).tril(learned)
    return seen[None, None]


def test_rows_that_stand_before_a_text_that_begins_are_none_of_its_tokens():
    site, prompt = Site(), rows(8)
    first = site.step(prompt, 5, after_learned(5, 3), tokens=5)
    second = site.step(joined(prompt, rows(1)), tokens=1)

    assert places(first) == [NO_TOKEN, NO_TOKEN + 1, NO_TOKEN + 2, 0, 1, 2, 3, 4]
    assert places(second) == [*places(first), 5]
    assert (first.at.tolist(), second.at.tolist()) == ([0], [5])


def test_rows_before_a_text_that_goes_on_are_its_earlier_tokens():
    told = Site().step(rows(8), 5, after_learned(5, 3), start=3, tokens=5)

    assert places(told) == list(range(8))
