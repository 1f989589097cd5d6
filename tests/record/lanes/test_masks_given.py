"""Masks of four axes that a caller hands a model: who sees whom, said for the first tokens."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import kvtrace
from builders.recorded import assert_attention_explains_itself, assert_caches_agree, record
from builders.tiny_models import tiny_model
from builders.ways import IDS, ready
from kvtrace.analysis.checks import EQUAL, UNCHECKED, check
from kvtrace.record.lanes.given.extend import CannotExtendError, Extension
from kvtrace.record.lanes.given.tables import table_of

PROMPT = IDS.shape[1]


def table(what):
    shown = torch.ones(PROMPT, PROMPT, dtype=torch.bool).tril()
    if what == "prefix":
        shown[:6, :6] = True
    elif what == "documents":
        shown[6:, :6] = False
    return shown[None, None]


def as_numbers(shown):
    return torch.zeros(shown.shape).masked_fill(~shown, torch.finfo(torch.float32).min)


def decode(model, mask, new=3):
    """The prompt under a mask of its own, then tokens that see all before them."""

    def run():
        out, logits = model(IDS, attention_mask=mask, use_cache=True), []
        for _ in range(new):
            logits.append(out.logits[:, -1:])
            now, cache = logits[-1].argmax(-1), out.past_key_values
            out = model(now, past_key_values=cache, use_cache=True)
        return torch.cat(logits, dim=1)

    return run


def recorded(model, mask, path, **options):
    run = decode(model, mask, **options)
    with torch.no_grad():
        expected = run()
        trace, held, found = record(model, run, path, recompute="once", referee=True)
    assert torch.equal(found, expected)
    assert_caches_agree(trace, held)
    assert_attention_explains_itself(trace)
    return trace


@pytest.mark.parametrize("what", ["prefix", "documents"])
@pytest.mark.parametrize(("attention", "form"), [("sdpa", bool), ("sdpa", float), ("eager", float)])
def test_without_a_cache_tokens_see_each_other_as_the_caller_said(what, attention, form, tmp_path):
    model = ready(tiny_model("llama", attn_implementation=attention))
    mask = table(what) if form is bool else as_numbers(table(what))
    report = check(recorded(model, mask, tmp_path / "a.kvt"))
    assert (report.verdict, report.findings) == (EQUAL, ())


def test_what_later_tokens_see_of_a_table_in_a_window_is_said_to_be_unknown(tmp_path):
    model = ready(tiny_model("gemma3_text"))
    assert model.config.sliding_window < PROMPT
    trace = recorded(model, table("prefix"), tmp_path / "a.kvt")
    assert check(trace).verdict == UNCHECKED
    assert any("layers have windows" in note.text for note in trace.notes)


def test_a_causal_mask_that_leaves_out_the_windows_of_the_layers_is_named(tmp_path):
    model = ready(tiny_model("gemma3_text"))
    with kvtrace.record(model, tmp_path / "a.kvt"), torch.no_grad():
        decode(model, table("causal"))()
    (found, *_) = check(kvtrace.open(tmp_path / "a.kvt")).findings
    assert (found.name, found.step, found.layer, found.tensor) == ("WINDOW", 0, 0, "mask")


@pytest.mark.parametrize("padding", [0, 2])
def test_a_table_of_the_layers_own_window_is_the_usual_one(padding, tmp_path):
    model = ready(tiny_model("mistral"))
    window = model.config.sliding_window
    assert window < PROMPT
    shown = torch.ones(PROMPT, PROMPT, dtype=torch.bool).tril().triu(1 - window)
    shown[:, :padding] = False
    forward = SimpleNamespace(
        argument={"attention_mask": shown[None, None]}.get,
        new=PROMPT,
        calls=[SimpleNamespace(window=window)],
    )
    assert table_of(forward) == {}
    shown[0, 1] = True
    assert table_of(forward) != {}


def test_a_causal_mask_of_four_axes_is_the_usual_one(tmp_path):
    model = ready(tiny_model("llama"))
    assert check(recorded(model, table("causal"), tmp_path / "a.kvt")).verdict == EQUAL


@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
def test_booleans_that_eager_attention_adds_hide_nothing(name, tmp_path):
    model = ready(tiny_model(name, attn_implementation="eager"))
    trace = recorded(model, table("documents"), tmp_path / "a.kvt")
    site = next(one.index for one in trace.meta.sites if one.kind == "self")
    assert trace.visible(0, site).all()
    bias = trace.bias(0, site)
    assert set(bias.ravel().tolist()) == {0.0, 1.0}
    # and so the model sees later tokens, with a cache or without
    assert [one.name for one in check(trace).findings] == ["NOT-CAUSAL"]


def test_a_mask_of_a_first_single_token_that_shows_several_keys_is_of_another_text():
    one = Extension(new=1, rows=5, most=1, tables=False, paths=())
    source = torch.tensor([[[[True, True, True, False, False, False]]]])
    assert one.extended("attention_mask", source, opened=False) is source
    buffer = torch.arange(6)[None, None, None] < 1
    with pytest.raises(CannotExtendError, match="belongs to its tokens"):
        one.extended("attention_mask", buffer, opened=False)


class Frames(nn.Module):
    """Tokens of a frame see each other, and those of earlier ones: the caller says which."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(20, 8), nn.Linear(8, 24), nn.Linear(8, 20)

    def forward(self, ids, attn_mask=None):
        q, k, v = self.qkv(self.embed(ids)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.head(out.transpose(1, 2).flatten(2))


def test_without_the_mask_of_frames_that_it_was_given_a_model_is_no_reference(tmp_path):
    model, ids = Frames(), torch.tensor([[3, 1, 4, 1, 5, 9]])
    frame = torch.arange(6) // 3
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        model(ids, attn_mask=frame[:, None] >= frame)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.meta.lanes[0].reference == "replayed"
    assert trace.compared(0).relative.max() < 1e-6


def test_a_table_of_any_name_and_sight_fits_as_many_tokens_and_no_more():
    who_sees_whom = (torch.arange(16) % 3 > 0).view(4, 4)
    as_many = Extension(new=4, rows=4, most=1, tables=False, paths=())
    more = Extension(new=4, rows=5, most=1, tables=False, paths=())
    assert as_many.extended("seen", who_sees_whom, opened=False) is who_sees_whom
    with pytest.raises(CannotExtendError, match="belongs to its tokens"):
        more.extended("seen", who_sees_whom, opened=False)
