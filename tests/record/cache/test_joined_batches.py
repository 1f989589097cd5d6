"""Prompts that run one by one and are decoded as one batch: each sequence goes on with its own."""

import pytest
import torch

import kvtrace
from builders.attentions import Model, matmul, token_ids
from kvtrace.analysis.checks import check
from kvtrace.trace import Tensor


def joined(caches):
    return [tuple(torch.cat(rows) for rows in zip(*layer, strict=True)) for layer in caches]


def decode(model, path, *, prompts=3, spoil=False):
    """Prompts one by one, then all of them together; the caches after each step."""
    ids, live = token_ids(prompts, 9), []
    with kvtrace.record(model, path):
        caches = [model(row[None, :6])[1] for row in ids]
        past = joined(zip(*caches, strict=True))
        for new in ids[:, 6:].split(1, 1):
            if spoil:
                past = [tuple(rows.clone() for rows in layer) for layer in past]
                past[1][0][1, 2] += 1
            _, past = model(new, past)
            live.append(past)
    return kvtrace.open(path), live


@torch.no_grad()
def test_each_sequence_of_a_joined_batch_goes_on_with_the_rows_of_its_own_prompt(tmp_path):
    trace, lived = decode(Model(matmul), tmp_path / "a.kvt")
    found = check(trace)
    assert found.ok
    assert found.findings == ()
    assert found.steps == len(trace) == 6
    for step, caches in zip(list(trace)[3:], lived, strict=True):
        group = step.cache_step(1)
        assert (group.rewritten, group.rows) == (0, 1)
        for sequence, row in enumerate(step.positions):
            assert row == (step.number + 3,)
            for tensor, live in zip((Tensor.KEYS, Tensor.VALUES), caches[1], strict=True):
                rows = [
                    torch.tensor(trace.source.cells(1, tensor, run.cell, run.count, None))
                    for run in group.kept[sequence]
                ]
                assert torch.equal(torch.cat(rows, 1), live[sequence].transpose(0, 1))


@torch.no_grad()
def test_a_row_that_is_spoilt_while_a_batch_is_joined_is_found(tmp_path):
    trace, _ = decode(Model(matmul), tmp_path / "a.kvt", spoil=True)
    found = check(trace)
    assert not found.ok
    assert found.findings[0].step == 3
    assert found.findings[0].sequences == (1,)


@pytest.mark.parametrize("times", [2, 4])
@torch.no_grad()
def test_one_prompt_that_is_repeated_for_a_batch_is_no_joining(times, tmp_path):
    model, ids = Model(matmul), token_ids(1, 6)
    with kvtrace.record(model, tmp_path / "a.kvt"):
        _, past = model(ids)
        past = [tuple(rows.repeat(times, 1, 1, 1) for rows in layer) for layer in past]
        model(token_ids(times, 1), past)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.step(1).order == (0,) * times
    assert check(trace).ok
