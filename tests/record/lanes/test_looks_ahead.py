"""Models whose rows see later ones, told whether they cache or compute everything again."""

import pytest
import torch
from torch import nn

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import generate, ready
from kvtrace.analysis.checks.report import UNCHECKED
from kvtrace.analysis.checks.verdict import check


class Ahead(nn.Module):
    """One layer without a mask, which keeps its keys and values on request."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(20, 8), nn.Linear(8, 24), nn.Linear(8, 20)
        self.second = nn.Linear(8, 24)
        self.held = {}

    def attend(self, x, layer, keep):
        q, k, v = layer(x).chunk(3, -1)
        if keep and layer in self.held:
            k, v = (torch.cat(pair, 1) for pair in zip(self.held[layer], (k, v), strict=True))
        if keep:
            self.held[layer] = (k, v)
        return (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v

    def forward(self, x, keep):
        x = self.attend(self.embed(x), self.qkv, keep)
        return self.head(self.attend(x, self.second, keep))


def test_looking_ahead_is_found_in_a_loop_without_a_cache_and_one_with(tmp_path):
    model, tokens = Ahead(), torch.tensor([[3, 1, 4, 1, 5, 9]])
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        for end in (4, 5, 6):
            model(tokens[:, :end], False)
        for start, end in ((0, 4), (4, 5), (5, 6)):
            model(tokens[:, start:end], True)
    trace = kvtrace.open(tmp_path / "a.kvt")
    notes = [one.text for one in trace.notes if one.kind == "finding"]
    assert [one.partition(":")[0] for one in notes] == ["NOT-CAUSAL"]
    # without a mask the weights differ too, which says nothing of their scores
    assert [one.name for one in check(trace).findings] == ["NOT-CAUSAL"]


class Prefix(nn.Module):
    """Reads its first text in both directions, and caches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(3))

    def forward(self, x, past=None):
        x, held = self.embed(x), []
        for at, layer in enumerate(self.layers):
            q, k, v = layer(x)[:, None].chunk(3, -1)
            if past is not None:
                k, v = (torch.cat(pair, 2) for pair in zip(past[at], (k, v), strict=True))
            held.append((k, v))
            x = x + nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]
        return self.head(x), held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_prefix_read_in_both_directions_is_all_that_is_said_of_it_in_any_type(dtype, tmp_path):
    model, tokens, past = Prefix().to(dtype), torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5]]), None
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.mul_(4)
    # without a referee, as all ways but the first are run
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True):
        for start, end in ((0, 6), (6, 7), (7, 8), (8, 9)):
            _, past = model(tokens[:, start:end], past)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert [one.name for one in report.findings] == ["NOT-CAUSAL"]
    assert "as in the prefix of a prefix LM" in report.findings[0].evidence


class Newest(nn.Module):
    """All queries of a text see its first row and its three newest, as cropped keys do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(20, 8), nn.Linear(8, 24), nn.Linear(8, 20)

    def forward(self, x, past=None):
        q, k, v = self.qkv(self.embed(x))[:, None].chunk(3, -1)
        if past is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
        near = [torch.cat((one[:, :, :1], one[:, :, -3:]), 2) for one in (k, v)]
        out = nn.functional.scaled_dot_product_attention(q, *near, is_causal=past is None)
        return self.head(out[:, 0]), (k, v)


def test_looking_ahead_is_found_where_no_row_of_the_prompt_can_be_compared(tmp_path):
    model, tokens, past = Newest(), torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5]]), None
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        for start, end in ((0, 7), (7, 8), (8, 9)):
            _, past = model(tokens[:, start:end], past)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    # nor are its logits those of a longer text, whatever else could be compared
    assert [one.name for one in report.findings] == ["NOT-CAUSAL"]


class Rounded(nn.Linear):
    """Rounds its input to 255 steps between the numbers of all rows, as dynamic int8 does."""

    def forward(self, x):
        step = x.abs().max() / 127
        return super().forward((x / step).round() * step)


@pytest.mark.parametrize("layers", [1, 4], ids=["first", "every"])
def test_layers_that_round_by_all_rows_at_once_are_no_bug_of_a_cache(layers, tmp_path):
    model = ready(tiny_model("llama"))
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for child in part.children():
                if isinstance(child, nn.Linear):
                    child.__class__ = Rounded
    # the largest number that layers see of the text is in its prompt, whatever follows
    with torch.no_grad():
        model.model.embed_tokens.weight[9] *= 0.01
        model.model.embed_tokens.weight[9, 0] = 9
        for layer in model.model.layers[layers:]:
            layer.input_layernorm.weight[0] = layer.post_attention_layernorm.weight[0] = 0
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="once"):
        generate(model)()
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert {one.name for one in report.findings} == {"NOT-CAUSAL"}


class Scaled(nn.Module):
    """Keeps keys and values in float8, times a scale that the first tokens it sees give them."""

    def __init__(self, causal=True):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.causal = nn.Embedding(20, 32), nn.Linear(32, 20), causal
        self.layers = nn.ModuleList(nn.Linear(32, 96) for _ in range(3))

    def forward(self, x, past=None):
        x, held = self.embed(x), []
        for at, layer in enumerate(self.layers):
            q, *new = layer(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
            before = [(None, one.abs().amax() / 300) for one in new] if past is None else past[at]
            kept = [self.kept(one, *had) for one, had in zip(new, before, strict=True)]
            held.append(kept)
            k, v = (rows.float() * scale for rows, scale in kept)
            hidden = past is None and self.causal
            out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=hidden)
            x = x + out.transpose(1, 2).flatten(2)
        return self.head(x), held

    def kept(self, new, rows, scale):
        new = (new / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        return new if rows is None else torch.cat((rows.float(), new.float()), 2).to(new), scale


@pytest.mark.parametrize("causal", [True, False])
def test_a_cache_scaled_by_its_whole_text_hides_no_model_that_looks_ahead(causal, tmp_path):
    model, tokens, past = Scaled(causal), torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 17, 11]]), None
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True):
        model.embed.weight[17] *= 1.5  # the largest of its text, by less than float8 can't hold
        for start, end in ((0, 8), (8, 9), (9, 10), (10, 11)):
            _, past = model(tokens[:, start:end], past)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [one.name for one in check(trace).findings] == ([] if causal else ["NOT-CAUSAL"])
    assert any("takes few values" in one.text for one in trace.notes) == causal


@pytest.mark.parametrize("mode", ["once", "each"])
def test_a_text_that_counts_from_one_is_fed_again_from_its_first_token_on(mode, tmp_path):
    model = ready(tiny_model("llama"))
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9]])
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute=mode):
        for end in (4, 5, 6):
            places = torch.arange(1, end + 1)[None]
            model(tokens[:, :end], position_ids=places, use_cache=False)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert (check(trace).verdict, check(trace).findings) == (UNCHECKED, ())
    compared = [trace.compared(number) for number in trace.numbers]
    assert all(one is not None and not (one.beyond > 0).any() for one in compared)
    assert not any(note.kind == "finding" for note in trace.notes)


def test_a_model_that_is_given_one_token_at_a_time_need_not_hide_later_ones(tmp_path):
    model, tokens, past = Prefix(), torch.tensor([[3, 1, 4, 1, 5]]), None
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        for at in range(5):
            _, past = model(tokens[:, at : at + 1], past)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert report.verdict == UNCHECKED
    assert "nothing hides them, for it was given one token at a time" in report.reason
