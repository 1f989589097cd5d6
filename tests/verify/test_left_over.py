"""Rows of an earlier text in a model that keeps its cache inside: both lanes hold them."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache, LlamaForCausalLM

import kvtrace
from builders.custom_drives import build
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks import DIVERGED, EQUAL, UNCHECKED, check
from kvtrace.analysis.checks.whole_run.leftover import beyond, leftover
from kvtrace.files import open_trace
from verify import bugs

TEXTS = [torch.arange(3 + 20 * n, 15 + 20 * n)[None] for n in range(2)]


def forgetful(*forgotten: int) -> nn.Module:
    """A model whose reset leaves out some layers."""
    model = build("einsum_heads")

    class Forgetful(type(model)):
        def reset_cache(self):
            for number, layer in enumerate(self.attention):
                if number not in forgotten:
                    layer.kept = None

    model.__class__ = Forgetful
    return model


def decode(model, text):
    with torch.no_grad():
        for start, end in ((0, 9), (9, 10), (10, 11), (11, 12)):
            model(text[:, start:end], use_cache=True)


@pytest.mark.parametrize("forgotten", [(0,), (1,), (0, 1)])
def test_a_reset_that_leaves_rows_behind_is_found_with_the_next_prompt(forgotten):
    report = kvtrace.check(forgetful(*forgotten), TEXTS[0][:, :9], new_tokens=4)
    first = report.findings[0]
    assert [one.report.verdict for one in report.trials[:2]] == [EQUAL, DIVERGED]
    assert (first.name, first.step, first.layer) == ("STALE-CACHE", 0, forgotten[0])
    assert "12 tokens went in, and the last one sees 24 rows: 12 were there before" in (
        first.evidence
    )
    assert "likeliest token" not in str(report)  # the other lane holds those rows too


def test_a_whole_reset_is_silent():
    report = kvtrace.check(forgetful(), TEXTS[0][:, :9], new_tokens=4)
    assert [one.report.verdict for one in report.trials[:2]] == [EQUAL, EQUAL]


def test_a_model_that_nothing_empties_is_not_called_wrong_for_the_prompt_before():
    report = kvtrace.check(build("hooked_dict"), TEXTS[0][:, :9], new_tokens=4)
    assert report.verdict == EQUAL
    assert "has no method that empties its cache" in report.trials[1].report.reason


def test_a_model_that_is_given_a_cache_for_each_text_and_keeps_its_own_is_stale():
    kept = DynamicCache()

    class Keeping(LlamaForCausalLM):
        def forward(self, *args, past_key_values=None, use_cache=None, **more):
            past_key_values = kept if use_cache is not False else None
            return super().forward(
                *args, past_key_values=past_key_values, use_cache=use_cache, **more
            )

    report = kvtrace.check(bugs.llama(Keeping), TEXTS[0][:, :9], new_tokens=4, ways=("again",))
    (first,) = report.findings
    assert [one.report.verdict for one in report.trials] == [EQUAL, DIVERGED]
    assert (first.name, first.step, first.layer) == ("STALE-CACHE", 0, 0)
    assert "12 were there before it" in first.evidence


@pytest.mark.parametrize("forgotten", [(0,), (1,)])
def test_two_texts_in_one_recording_tell_which_layer_kept_the_first(tmp_path, forgotten):
    model = forgetful(*forgotten)
    with kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True):
        for text in TEXTS:
            model.reset_cache()
            decode(model, text)
    found = check(open_trace(tmp_path / "a.kvt")).findings
    assert [(one.name, one.step, one.layer) for one in found] == [("STALE-CACHE", 4, forgotten[0])]


def test_a_layer_that_is_full_before_the_recording_begins_is_named(tmp_path):
    model = forgetful(1)
    decode(model, TEXTS[0])
    model.reset_cache()
    with kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True):
        decode(model, TEXTS[1])
    found = check(open_trace(tmp_path / "a.kvt")).findings
    assert [(one.name, one.step, one.layer) for one in found] == [("STALE-CACHE", 0, 1)]


def test_two_healthy_texts_in_one_recording_are_silent(tmp_path):
    model = forgetful()
    with kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True):
        for text in TEXTS:
            model.reset_cache()
            decode(model, text)
    assert check(open_trace(tmp_path / "a.kvt")).findings == ()


def test_rows_that_are_computed_anew_in_every_step_are_left_of_nothing(tmp_path):
    model = tiny_model("blt")  # attends to patches, which are no tokens
    model.generation_config.pad_token_id = 0
    ids = torch.randint(3, 90, (1, 11), generator=torch.Generator().manual_seed(0))
    with kvtrace.record(model, tmp_path / "a.kvt"):
        model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False)
    report = check(open_trace(tmp_path / "a.kvt"))
    assert (report.verdict, report.findings) == (EQUAL, ())


def test_rows_of_a_stream_beside_the_cache_are_left_of_nothing():
    model = tiny_model("prophetnet")  # predicts from its own rows, beside those that are cached
    ids = torch.randint(5, 60, (1, 11), generator=torch.Generator().manual_seed(1))
    report = kvtrace.check(model, ids, new_tokens=4, ways=[])
    assert [one.name for one in report.findings] == ["NOT-CAUSAL"]


@pytest.mark.parametrize("length", [5, 7, 12])
def test_rows_that_compress_several_tokens_are_left_of_nothing(tmp_path, length):
    model = tiny_model("deepseek_v4")
    model.generation_config.pad_token_id = 0
    ids = torch.randint(3, 90, (1, length), generator=torch.Generator().manual_seed(0))
    with kvtrace.record(model, tmp_path / "a.kvt"):
        model.generate(ids, max_new_tokens=5, do_sample=False)
    report = check(open_trace(tmp_path / "a.kvt"))
    assert (report.verdict, report.findings) == (EQUAL, ())


class Pairs(nn.Module):
    """Keeps one row for every two tokens: the sum of theirs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(40, 8), nn.Linear(8, 24), nn.Linear(8, 40)

    def forward(self, ids, past=None):
        q, k, v = self.qkv(self.embed(ids)).chunk(3, -1)
        before, count = (None, 0) if past is None else past
        rows, after = torch.stack((k, v)), count + ids.shape[1]
        if count % 2:
            before, rows = before.clone(), rows[:, :, 1:]
            before[:, :, -1] += torch.stack((k, v))[:, :, 0]
        rows = nn.functional.pad(rows, (0, 0, 0, rows.shape[2] % 2)).unflatten(2, (-1, 2)).sum(3)
        kept = rows if before is None else torch.cat((before, rows), 2)
        out = (q @ kept[0].mT / 8**0.5).softmax(-1) @ kept[1]
        return self.head(out), (kept, after)


def test_a_shorter_text_of_which_fewer_rows_are_left_out_is_not_stale(tmp_path):
    model, traces = Pairs(), []
    for count in (29, 12):
        with torch.no_grad(), kvtrace.record(model, tmp_path / f"{count}.kvt"):
            _, past = model(torch.arange(count)[None])
            for token in (count, count + 1, count + 2):
                _, past = model(torch.tensor([[token]]), past)
        traces.append(open_trace(tmp_path / f"{count}.kvt"))
    fresh = beyond(traces[0])
    assert (fresh, beyond(traces[1])) == ({0: 15 - 29}, {0: 6 - 12})
    assert leftover(traces[1], traces[1].step(0), None, fresh) is None


class Segments(nn.Module):
    """Attends to a segment and to the one before it, of which it keeps what went in.

    Args:
        alone: A layer comes before that attends to the segment alone.
    """

    SIZE = 5

    def __init__(self, *, alone=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.alone = nn.Embedding(40, 16), nn.Linear(16, 40), alone
        self.qkv = nn.ModuleList([nn.Linear(16, 48), nn.Linear(16, 48)])
        self.places = nn.Parameter(torch.randn(2 * self.SIZE, 16))

    def mix(self, x, rows, qkv):
        q, k, v = qkv(rows + self.places[: rows.shape[1]]).chunk(3, -1)
        new = x.shape[1]
        mask = torch.ones(new, rows.shape[1]).tril(rows.shape[1] - new).bool()
        scores = (q[:, -new:] @ k.mT / 4).masked_fill(~mask, -torch.inf)
        return x + scores.softmax(-1) @ v

    def forward(self, ids, memory=None):
        x = self.embed(ids)
        x = self.mix(x, x, self.qkv[0]) if self.alone else x
        rows = x if memory is None else torch.cat((memory, x), 1)
        return self.head(self.mix(x, rows, self.qkv[1])), x if x.shape[1] == self.SIZE else memory


@pytest.mark.parametrize("recompute", ["once", "each"])
def test_segments_behind_a_memory_are_no_stale_cache_and_not_compared(tmp_path, recompute):
    model, ids, begin, memory = Segments(), torch.randperm(40)[None], 0, None
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute=recompute):
        for end in range(3, 14):
            _, after = model(ids[:, begin:end], memory)
            if end - begin == model.SIZE:
                begin, memory = end, after
    report = check(open_trace(tmp_path / "a.kvt"))
    assert (report.verdict, report.findings) == (UNCHECKED, ())
    assert "step 8 begins behind 5 rows that it made itself" in report.reason


def test_a_segment_that_is_computed_again_is_no_new_text(tmp_path):
    model, ids, memory = Segments(alone=True), torch.randperm(40)[None], None
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        for end in (3, 4, 5):
            _, memory = model(ids[:, :end])
        for end in (6, 7, 8, 9):
            model(ids[:, 5:end], memory)
    trace = open_trace(tmp_path / "a.kvt")
    again, before = trace.step(4), trace.step(3)
    assert again.tokens[0][:-1] == before.tokens[0]
    assert beyond(trace, before) == beyond(trace, again) == {1: 5}
    assert leftover(trace, again, before, None) is None
