"""Caches of which one half follows the sequences, or one layer the tokens, and no more."""

import pytest
import torch

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL
from kvtrace_fixtures.custom import tuple_cat

PROMPT = [5, 9, 30, 7, 81, 44, 9, 12]
FIRST, THEN = [3, 77, 140, 21], [50, 8, 60, 11]


def made():
    torch.manual_seed(3)
    return tuple_cat.GPT().eval()


def moved(past, rows, halves):
    """The past of some sequences, in keys, in values or in both."""
    return [
        tuple(half[rows] if n in halves else half[: len(rows)] for n, half in enumerate(layer))
        for layer in past
    ]


@torch.no_grad()
def beams(model, halves, rows=(0, 0, 1, 3)):
    """Four answers, of which one is dropped and another goes on twice."""
    _, past = model(torch.tensor([PROMPT]))
    past = [tuple(half.repeat_interleave(4, 0) for half in layer) for layer in past]
    _, past = model(torch.tensor(FIRST)[:, None], past)
    past = moved(past, list(rows), halves)
    for token in (0, 1):
        _, past = model(torch.tensor(THEN)[: len(rows), None] + token, past)


@pytest.mark.parametrize("rows", [(0, 0, 1, 3), (1, 1, 1, 1), (0, 2, 3)])
def test_sequences_that_move_with_keys_and_values_are_followed(rows):
    model = made()
    report = kvtrace.check(model, run=lambda: beams(model, (0, 1), rows))
    assert (report.verdict, report.findings) == (EQUAL, ()), report


@pytest.mark.parametrize("rows", [(0, 0, 1, 3), (1, 1, 1, 1), (0, 2, 3)])
@pytest.mark.parametrize(("half", "left"), [(0, "v"), (1, "k")])
def test_the_half_that_stays_behind_belongs_to_another_sequence(half, left, rows):
    model = made()
    report = kvtrace.check(model, run=lambda: beams(model, (half,), rows))
    assert report.verdict == DIVERGED
    found = report.findings[0]
    assert (found.name, found.step, found.layer, found.tensor) == ("WRONG-BATCH-ROW", 2, 0, left)
    wrong = tuple(n for n, row in enumerate(rows) if n != row)
    assert found.sequences == (wrong if len(wrong) < len(rows) else ())


@torch.no_grad()
def drafted(model, cropped):
    """A draft of three is rejected; some layers drop its rows, and the text goes on."""
    _, past = model(torch.tensor([PROMPT]))
    _, longer = model(torch.tensor([FIRST[:3]]), past)
    past = [
        tuple(half[:, :, : len(PROMPT)] for half in layer) if n in cropped else layer
        for n, layer in enumerate(longer)
    ]
    for token in THEN:
        _, past = model(torch.tensor([[token]]), past)


def test_a_rejected_draft_that_all_layers_drop_leaves_nothing():
    model = made()
    assert kvtrace.check(model, run=lambda: drafted(model, (0, 1))).verdict == EQUAL


def test_a_rejected_draft_is_stale_in_the_layer_that_does_not_drop_it():
    model = made()
    report = kvtrace.check(model, run=lambda: drafted(model, (0,)))
    (found,) = report.findings
    assert (found.name, found.step, found.layer) == ("STALE-CACHE", 2, 1)
    assert found.evidence.startswith("3 rows in slots 8, 9, 10: of tokens that were taken back")
