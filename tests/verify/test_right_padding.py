"""Batches whose shorter rows are filled up behind their text, and masks of too few rows."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks import EQUAL, check
from kvtrace.files import open_trace

TOKENS = torch.randint(3, 90, (2, 13), generator=torch.Generator().manual_seed(1))


def decoded(model, path, *, wrong=False):
    """The first row is three tokens shorter; `wrong`: the second's positions are off by one."""
    mask = torch.ones_like(TOKENS)
    mask[0, 6:9] = 0
    past, start = None, 0
    with kvtrace.record(model, path, keep_rows=True), torch.no_grad():
        for end in (9, 10, 11, 12):
            where = torch.arange(start, end)[None].repeat(2, 1)
            if start:
                where[0] -= 3
                where[1] -= int(wrong)
            past = model(
                TOKENS[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=where,
                past_key_values=past,
                use_cache=True,
            ).past_key_values
            start = end
    return check(open_trace(path))


def test_a_row_that_is_padded_at_the_right_is_no_divergence(tmp_path):
    report = decoded(tiny_model("llama"), tmp_path / "a.kvt")
    assert (report.verdict, report.findings) == (EQUAL, ())
    assert "sequence 0 is padded at the right" in report.caveats[0]


def test_the_other_rows_of_its_batch_are_compared_all_the_same(tmp_path):
    first = decoded(tiny_model("llama"), tmp_path / "a.kvt", wrong=True).findings[0]
    assert (first.name, first.step, first.sequences) == ("POSITION-ROPE", 1, (1,))


@pytest.mark.filterwarnings("error")  # a recording that stops says so in a warning
def test_a_mask_of_fewer_rows_than_there_are_does_not_stop_the_recording(tmp_path, monkeypatch):
    from transformers.models.llama import modeling_llama

    class Twice(DynamicCache):
        def update(self, keys, values, layer, *args, **kwargs):
            if keys.shape[2] == 1 and layer == 0:
                super().update(keys, values, layer, *args, **kwargs)
            return super().update(keys, values, layer, *args, **kwargs)

    eager = modeling_llama.eager_attention_forward

    def unmasked(module, q, k, v, mask, **kwargs):
        return eager(module, q, k, v, mask if q.shape[2] > 1 else None, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", unmasked)
    model = tiny_model("llama", attn_implementation="eager")
    past = Twice()
    with kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True), torch.no_grad():
        for start, end in ((0, 9), (9, 10), (10, 11)):
            model(TOKENS[:1, start:end], past_key_values=past, use_cache=True)
    trace = open_trace(tmp_path / "a.kvt")
    first = check(trace).findings[0]
    assert (len(trace), first.name, first.step, first.layer) == (3, "DUPLICATE-ROWS", 1, 0)
