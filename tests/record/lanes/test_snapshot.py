"""The recomputed lane of people's own models: on private copies, bare or replayed."""

import numpy as np
import pytest
import torch
from torch import nn

import kvtrace
from builders.custom_drives import STYLES, build, ids, through_the_cache
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks import EQUAL, UNCHECKED, check
from kvtrace.record.lanes.as_it_was.private import Copier
from kvtrace.record.lanes.as_it_was.snapshot import copied
from kvtrace.record.lanes.as_it_was.tensors import Tensors

PROMPT, TOTAL = 6, 12
REPLAYED = ("buffers_start_pos", "ring_window")
ATTENDING = [style for style in STYLES if style != "recurrent"]


def recorded(style, model, path, **options):
    with kvtrace.record(model, path, **options):
        logits = through_the_cache(style, model, ids(TOTAL), PROMPT)
    return kvtrace.open(path), logits


@pytest.mark.parametrize("style", ATTENDING)
def test_both_lanes_of_every_style_agree(style, tmp_path):
    trace, _ = recorded(style, build(style), tmp_path / "a.kvt")
    lane = trace.meta.lane("recomputed")
    assert lane.reference == ("replayed" if style in REPLAYED else "bare")
    for number in trace.numbers:
        found = trace.compared(number)
        assert not (found.beyond > 0).any()
        assert not np.isnan(found.max_abs[:, 3].max(axis=-1)).any()
        (logits,) = found.logits
        assert logits.best == logits.lane_best


@pytest.mark.parametrize(
    "style", ["buffers_start_pos", "hooked_dict", "einsum_heads", "index_copy"]
)
def test_recomputing_after_each_step_disturbs_no_cache(style, tmp_path):
    plain = through_the_cache(style, build(style), ids(TOTAL), PROMPT)
    trace, logits = recorded(style, build(style), tmp_path / "a.kvt", recompute="each")
    assert all(torch.equal(a, b) for a, b in zip(plain, logits, strict=True))
    assert not any((trace.compared(number).beyond > 0).any() for number in trace.numbers)


def test_a_replayed_lane_says_that_it_shares_the_code(tmp_path):
    trace, _ = recorded("buffers_start_pos", build("buffers_start_pos"), tmp_path / "a.kvt")
    assert any("shares the code of the cache" in note.text for note in trace.notes)


@pytest.mark.parametrize("style", ["buffers_start_pos", "index_copy"])
def test_positions_that_are_off_by_one_part_the_lanes(style, tmp_path):
    model, tokens = build(style), ids(TOTAL)
    where = (lambda at, new: at) if style == "buffers_start_pos" else torch.arange
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        model(tokens[:, :PROMPT], where(0, PROMPT))
        for at in range(PROMPT, TOTAL):
            model(tokens[:, at : at + 1], where(at + 1, at + 2))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert not (trace.compared(0).beyond > 0).any()
    assert (trace.compared(1).beyond > 0).any()


def test_a_mask_that_is_an_argument_makes_the_lane_a_replayed_one(tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.qkv = nn.Embedding(50, 16), nn.Linear(16, 48)

        def forward(self, idx, mask=None):
            q, k, v = (x[:, None] for x in self.qkv(self.wte(idx)).chunk(3, -1))
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return y[:, 0] @ self.wte.weight.T

    model, tokens = Masked().eval(), ids(8) % 50
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        for end in range(5, 9):
            model(tokens[:, :end], torch.ones(end, end, dtype=torch.bool).tril())
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.meta.lane("recomputed").reference == "replayed"
    assert not any((trace.compared(number).beyond > 0).any() for number in trace.numbers)


def test_steps_before_a_change_of_weights_are_not_compared_with_the_new_ones(tmp_path):
    model, tokens = build("tuple_cat"), ids(TOTAL)
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        model(tokens[:, :5])
        model.lm_head.weight.mul_(2)
        model.blocks[0].mlp[0].weight.add_(1)
        model(tokens[:, :7])
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.compared(0) is None
    assert not (trace.compared(1).beyond > 0).any()
    assert any("the weights changed" in note.text for note in trace.notes)


def test_steps_of_weights_that_are_gone_in_the_end_are_not_compared_with_others(tmp_path):
    model, tokens = tiny_model("llama"), ids(TOTAL) % 50
    weight = model.model.layers[1].self_attn.v_proj.weight
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        weight.add_(1)
        cache = model(tokens[:, :5]).past_key_values
        model(tokens[:, 5:7], past_key_values=cache)
        weight.sub_(1)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [trace.compared(number) for number in trace.numbers] == [None, None]
    report = check(trace)
    assert report.verdict == UNCHECKED
    assert report.reason == "steps 0 to 1: not compared, for the weights changed afterwards"


class Adapted(nn.Module):
    """A projection with something beside it that can be turned off, as adapters are."""

    def __init__(self, base):
        super().__init__()
        self.base, self.beside = base, nn.Linear(base.in_features, base.out_features)
        self.disable_adapters = False

    def forward(self, x):
        return self.base(x) if self.disable_adapters else self.base(x) + self.beside(x)


def decode(model, tokens):
    cache = model(tokens[:, :5]).past_key_values
    model(tokens[:, 5:7], past_key_values=cache)


@pytest.mark.parametrize("mode", ["once", "each"])
def test_texts_with_adapters_that_are_off_in_the_end_are_compared_with_them(tmp_path, mode):
    model, tokens = tiny_model("llama"), ids(TOTAL) % 50
    attention = model.model.layers[1].self_attn
    adapted = attention.v_proj = Adapted(attention.v_proj)
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute=mode):
        decode(model, tokens)
        adapted.disable_adapters = True
        decode(model, tokens)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.steps) == (EQUAL, 4), report.findings
    assert adapted.disable_adapters


def test_steps_that_are_lent_other_weights_than_those_before_are_not_compared(tmp_path):
    model, tokens = tiny_model("llama"), ids(TOTAL) % 50
    lent, other = (
        {name: times * one.detach() for name, one in model.named_parameters()} for times in (2, 3)
    )
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        cache = torch.func.functional_call(model, lent, (tokens[:, :5],)).past_key_values
        given = {"past_key_values": cache}
        torch.func.functional_call(model, other, (tokens[:, 5:7],), given)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert report.verdict == UNCHECKED
    assert "the weights changed" in report.reason


def test_autocast_is_as_it_was_at_the_first_call(tmp_path):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace, _ = recorded("tuple_cat", build("tuple_cat"), tmp_path / "a.kvt")
    assert trace.meta.sites[0].dtype == "bfloat16"
    assert not any((trace.compared(number).beyond > 0).any() for number in trace.numbers)


def test_a_model_that_nothing_can_call_again_says_why(tmp_path):
    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build("multihead_module")

        def forward(self, idx, weather):
            return self.inner(idx) * weather.mean()

    with torch.no_grad(), kvtrace.record(Told(), tmp_path / "a.kvt") as recording:
        recording.watch.model(ids(6), torch.rand(6, 3))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.meta.lanes == ()
    (note,) = [note.text for note in trace.notes]
    assert "`weather` can't be left out" in note
    assert "`weather` [6, 3] belongs to its tokens" in note


def test_a_copy_shares_weights_and_nothing_that_changes():
    model = build("sinks_prealloc")
    model.cache = model.make_cache(1, 40)
    model.view = model.cache[0]
    copy = Copier(Tensors(model.parameters())).of(model)
    assert all(a is b for a, b in zip(model.parameters(), copy.parameters(), strict=True))
    copy.view.fill_(1)
    assert float(copy.cache[0].min()) == 1
    assert not model.cache.any()


def test_hooks_of_a_copy_fill_its_own_cache():
    model = build("hooked_dict")
    cache, _ = model.install_kv_cache_hooks()
    copy = Copier(Tensors(model.parameters())).of(model)
    with torch.no_grad():
        copy(ids(4))
        copy(ids(4))
    assert cache == {}


def test_what_cannot_be_copied_is_shared_and_named():
    class Strange:
        def __new__(cls, needed):
            return super().__new__(cls)

    model = build("tuple_cat")
    model.strange = Strange(1)
    model.lock = __import__("threading").Lock()
    copier = Copier(Tensors(model.parameters()))
    copy = copier.of(model)
    assert copy.strange is model.strange
    assert copy.lock is model.lock
    assert copier.odd == ["Strange (its class can't be made empty)"]


def test_what_functions_bind_as_defaults_is_copied_with_them():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for layer in model:
        before = layer.forward

        def forward(x, before=before, *, seen=[]):  # noqa: B006 - it keeps what it has seen
            seen.append(len(seen))
            return before(x)

        layer.forward = forward
    copied = Copier(Tensors(model.parameters())).of(model)
    copied(torch.zeros(1, 4))
    for mine, theirs in zip(model, copied, strict=True):
        assert theirs.forward.__defaults__[0].__self__ is theirs
        assert mine.forward.__kwdefaults__["seen"] == []
        assert theirs.forward.__kwdefaults__["seen"] == [0]


def test_a_copy_beside_another_thread_has_weights_in_common_and_no_configuration():
    model = tiny_model("llama")
    other = copied(model)
    assert other.lm_head.weight is model.lm_head.weight
    configs = {id(one.config) for one in other.modules() if hasattr(one, "config")}
    assert configs == {id(other.config)}
    assert other.config is not model.config


def test_a_sparse_buffer_is_in_no_lanes_way(tmp_path):
    model = build("buffers_start_pos")
    model.register_buffer("chosen", torch.eye(4).to_sparse(), persistent=False)
    trace, _ = recorded("buffers_start_pos", model, tmp_path / "a.kvt")
    assert check(trace).ok
