"""The highest logits of a step, of any vocabulary, whatever the numbers are."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("shift", [0.0, -70.0, 500.0])
@pytest.mark.parametrize("vocab", [7, 5000, 50257])
def test_top_logits_of_any_vocabulary_at_any_height(vocab, shift):
    from kvtrace.record.steps.top import TopReader

    logits = torch.randn(2, 3, vocab, generator=torch.Generator().manual_seed(vocab)) * 5 + shift
    reader = TopReader()
    for _ in range(2):
        found = reader.read(logits, 2)
        for top, row in zip(found, logits[:, -1], strict=True):
            best = row.sort(descending=True)
            assert list(top.logits) == best.values[:20].tolist()
            assert [float(row[i]) for i in top.ids] == list(top.logits)
            expected = float(row.double().logsumexp(0))
            assert top.logsumexp == pytest.approx(expected, abs=1e-4)
    assert reader.read(logits, 3) == ()


def test_top_logits_with_nan_do_not_stop_the_recording():
    from kvtrace.record.steps.top import TopReader

    logits = torch.full((1, 1, 9), float("nan"))
    (top,) = TopReader().read(logits, 1)
    assert len(top.ids) == 9


def test_logits_made_in_inference_mode_are_read_in_it_and_out_of_it():
    from kvtrace.record.steps.top import TopReader

    reader = TopReader()
    with torch.inference_mode():
        logits = torch.randn(1, 1, 9)
        inside = reader.read(logits, 1)
    # where steps wait, another thread reads them
    assert reader.read(logits, 1) == inside
