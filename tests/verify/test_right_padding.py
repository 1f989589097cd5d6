"""Batches whose rows are filled up behind or within their text, and masks of too few rows."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks import EQUAL, UNCHECKED, check
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
    assert "sequence 0 is padded behind or within its text" in report.caveats[0]


def test_the_other_rows_of_its_batch_are_compared_all_the_same(tmp_path):
    first = decoded(tiny_model("llama"), tmp_path / "a.kvt", wrong=True).findings[0]
    assert (first.name, first.step, first.sequences) == ("POSITION-ROPE", 1, (1,))


def within(mask):
    """Some tokens are hidden in the middle of the second text, as by a caller's mask."""
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    tokens = TOKENS[: len(mask)]

    def run(path, mode):
        with kvtrace.record(model, path, recompute=mode, force=True):
            model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=3)
        return check(open_trace(path))

    return run


@pytest.mark.parametrize("mode", ["once", "each"])
def test_tokens_hidden_within_a_text_are_no_divergence_and_not_compared(tmp_path, mode):
    mask = torch.ones_like(TOKENS)
    mask[1, 3:6] = 0
    report = within(mask)(tmp_path / "a.kvt", mode)
    assert (report.verdict, report.findings, report.flips) == (EQUAL, (), ())
    assert max(far for _, far in report.largest) < 1e-5  # of the first text alone
    assert "sequence 1 is padded behind or within its text" in report.caveats[0]


def test_a_text_alone_with_hidden_tokens_within_it_is_not_called_equal(tmp_path):
    mask = torch.ones_like(TOKENS[:1])
    mask[0, 3:6] = 0
    report = within(mask)(tmp_path / "a.kvt", "once")
    assert (report.verdict, report.findings) == (UNCHECKED, ())


def test_a_second_turn_of_a_batch_that_is_padded_at_the_left_is_no_divergence(tmp_path):
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    mask = torch.ones_like(TOKENS)
    mask[1, :2] = 0
    again = torch.ones_like(mask)
    again[1, :3] = 0
    options = {"do_sample": False, "max_new_tokens": 2, "past_key_values": DynamicCache()}
    with kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True):
        first = model.generate(TOKENS, attention_mask=mask, **options)
        mask = torch.cat([mask, torch.ones(2, 2, dtype=torch.long), again], dim=1)
        model.generate(torch.cat([first, TOKENS], dim=1), attention_mask=mask, **options)
    report = check(open_trace(tmp_path / "a.kvt"))
    assert (report.verdict, report.findings, report.steps) == (EQUAL, (), 4)


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


def gathered(model, path, *, hidden):
    """Three prompts, filled up at the right; each goes on with the likeliest after its own end."""
    lengths = torch.tensor([13, 9, 6])
    tokens = torch.randint(3, 90, (3, 13), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(13) < lengths[:, None]).long()
    given, past, at = tokens * mask, None, lengths - 1
    with kvtrace.record(model, path, keep_rows=True), torch.no_grad():
        for step in range(4):
            mask = torch.cat([mask, torch.ones(3, step > 0, dtype=torch.long)], dim=1)
            places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -given.shape[1] :]
            told = {"attention_mask": mask, "position_ids": places} if hidden else {}
            out = model(given, past_key_values=past, use_cache=True, **told)
            likeliest = out.logits.argmax(-1)
            given, past = likeliest[torch.arange(3), at][:, None], out.past_key_values
            at = torch.zeros(3, dtype=torch.long)
    return check(open_trace(path))


def test_filling_at_the_right_that_texts_go_on_behind_is_visible_padding(tmp_path):
    report = gathered(tiny_model("llama"), tmp_path / "a.kvt", hidden=False)
    first = report.findings[0]
    assert (first.name, first.step, first.layer, first.sequences) == ("PAD-VISIBLE", 1, 0, (1, 2))
    assert len(report.findings) == 1


def test_filling_at_the_right_that_is_hidden_is_no_divergence(tmp_path):
    report = gathered(tiny_model("llama"), tmp_path / "a.kvt", hidden=True)
    assert (report.verdict, report.findings) == (EQUAL, ())
