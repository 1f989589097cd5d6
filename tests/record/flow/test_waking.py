"""A mode that sleeps between products follows what one that is always awake follows."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from builders.custom_drives import STYLES, build, ids, through_the_cache
from builders.slept import (
    DIM,
    HEADS,
    Encoded,
    Text,
    asleep,
    assert_same,
    awake,
    biased,
    fused,
    kept,
    manual,
    other_scale,
    spelled,
    steps,
)
from kvtrace.record.flow import FlowWatch
from kvtrace.record.flow.marks import families
from kvtrace.record.flow.modes.mode import FlowMode

TOTAL, PROMPT = 20, 5
NEVER_ASLEEP = ("multihead_module",)


@pytest.mark.parametrize("only", [None, lambda *_: True], ids=["around all", "in modules"])
@pytest.mark.parametrize("style", STYLES)
def test_a_custom_model_shows_the_same_asleep_bit_by_bit(style, only):
    drive = lambda model: through_the_cache(style, model, ids(TOTAL), PROMPT)  # noqa: E731
    calls, logits, watch = asleep(build(style), drive, only)
    others, expected, other = awake(build(style), drive)
    assert_same(calls, others)
    assert all(torch.equal(a, b) for a, b in zip(logits, expected, strict=True))
    assert watch.unseen == other.unseen
    assert (watch._waking.slept > 0) is (style not in NEVER_ASLEEP)


@pytest.mark.parametrize("later", [fused, spelled, other_scale, biased])
@pytest.mark.parametrize("first", [manual, fused])
def test_code_that_changes_at_a_length_is_followed_all_the_same(first, later):
    def how(q, k, v):
        return (first if k.shape[2] < 8 else later)(q, k, v)

    calls, out, watch = asleep(Text(how), steps)
    others, expected, _ = awake(Text(how), steps)
    assert len(calls) == 2 * 15
    assert_same(calls, others)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    assert watch._waking.slept > 8
    assert watch.unseen == ()


def test_most_of_a_forward_goes_past_a_sleeping_mode(monkeypatch):
    seen = []
    original = FlowMode.__torch_function__

    def counted(mode, func, types, args=(), kwargs=None):
        seen.append(func.__name__)
        return original(mode, func, types, args, kwargs)

    monkeypatch.setattr(FlowMode, "__torch_function__", counted)
    model = Text(manual)
    with FlowWatch(model, sink=lambda _: None, only=lambda *_: True):
        steps(model)
        seen.clear()
        model(torch.tensor([[1]]))  # the 16th, looked at awake
        whole = list(seen)
        seen.clear()
        model(torch.tensor([[1]]))
    assert len(seen) < len(whole) / 2
    assert {"linear", "view", "embedding"}.isdisjoint(seen)


def test_functions_that_a_model_keeps_for_itself_keep_the_mode_awake():
    product = torch.matmul

    def how(q, k, v):
        return product(F.softmax(product(q, k.mT) * 0.5, -1), v)

    calls, _, watch = asleep(Text(how), steps)
    assert len(calls) == 2 * 15
    assert watch._waking.slept == 0


def test_attention_that_a_sleeping_mode_missed_is_told():
    product = torch.matmul

    def hidden(q, k, v):
        return product(F.softmax(product(q, k.mT) * 0.5, -1), v)

    def how(q, k, v):
        return (manual if k.shape[2] < 6 else hidden)(q, k, v)

    calls, _, watch = asleep(Text(how), steps)
    missed = 2 * 15 - len(calls)
    assert missed == 2  # both layers of the sixth step; the seventh was followed awake
    assert any("of a step before was not seen" in one for one in watch.unseen)


def test_layers_that_some_tokens_skip_are_not_said_to_be_missing():
    def how(q, k, v):
        return v[:, :, -q.shape[2] :] if k.shape[2] % 3 == 1 else manual(q, k, v)

    calls, _, watch = asleep(Text(how), steps)
    others, _, _ = awake(Text(how), steps)
    assert_same(calls, others)
    assert watch._waking.slept > 0
    assert watch.unseen == ()


def test_an_einsum_whose_axes_are_numbers_keeps_the_mode_awake():
    def how(q, k, v):
        scores = torch.einsum(q, [0, 1, 2, 9], k, [0, 1, 3, 9], [0, 1, 2, 3]) / 2
        return torch.einsum(scores.softmax(-1), [0, 1, 2, 3], v, [0, 1, 3, 4], [0, 1, 2, 4])

    calls, _, watch = asleep(Text(how), steps)
    others, _, _ = awake(Text(how), steps)
    assert_same(calls, others)
    assert len(calls) == 2 * 15
    assert watch.unseen == ()


def test_weights_used_twice_keep_the_mode_awake():
    def how(q, k, v):
        weights = F.softmax(q @ k.mT * 0.5, -1)
        return weights @ v + weights @ (v * 2)

    calls, _, watch = asleep(Text(how), steps)
    assert len(calls) == 2 * 2 * 15
    assert watch._waking.slept == 0


def test_a_mode_of_the_model_around_its_attention_keeps_ours_awake():
    def how(q, k, v):
        with torch.device("cpu"):
            return manual(q, k, v)

    calls, _, watch = asleep(Text(how), steps)
    assert len(calls) == 2 * 15
    assert watch._waking.slept == 0
    assert torch._C._len_torch_function_stack() == 0


def test_functions_are_given_back_when_the_watch_is_over():
    names = ("matmul", "einsum", "tensordot", "bmm")
    before = [getattr(torch, name) for name in names] + [F.linear, Tensor.matmul]
    model = Text(manual)
    with FlowWatch(model, sink=lambda _: None, only=lambda *_: True):
        steps(model)
        assert [getattr(torch, name) for name in names] == before[:4]  # between forwards too
    after = [getattr(torch, name) for name in names] + [F.linear, Tensor.matmul]
    assert after == before
    assert "__matmul__" not in Tensor.__dict__


def test_an_exception_in_the_middle_of_attention_leaves_no_mode():
    raised = []

    def how(q, k, v):
        scores = q @ k.mT
        if k.shape[2] == 8 and not raised:
            raised.append(True)
            raise KeyError("in between")
        return F.softmax(scores, -1) @ v

    model, calls = Text(how), []
    with FlowWatch(model, sink=kept(calls), only=lambda *_: True) as watch:
        with pytest.raises(KeyError):
            steps(model)
        assert torch._C._len_torch_function_stack() == 0
        assert watch._waking.slept > 0
        before = len(calls)
        model(torch.tensor([[1]]))
    assert len(calls) == before + 2
    assert torch._C._len_torch_function_stack() == 0


def test_two_watches_at_once_both_see_all():
    model, outer, inner = Text(manual), [], []
    with (
        FlowWatch(model, sink=kept(outer), only=lambda *_: True) as one,
        FlowWatch(model, sink=kept(inner), only=lambda *_: True) as other,
    ):
        steps(model)
    assert len(outer) == len(inner) == 2 * 15
    assert_same(outer, inner)
    assert one._waking.slept > 0
    assert other._waking.slept > 0
    assert torch._C._len_torch_function_stack() == 0


def test_what_is_remembered_of_scores_stays_small_where_no_module_runs(monkeypatch):
    monkeypatch.setattr(families, "MOST", 8)
    rows = torch.randn(1, HEADS, 3, DIM)
    calls = []
    with FlowWatch(sink=kept(calls)) as watch:
        for _ in range(20):
            watch.begin_step(1, 3)
            manual(rows, rows, rows)
            assert len(watch._mode.families._open) + len(watch._mode.families._closed) <= 8
    assert len(calls) == 20


def test_a_forward_that_makes_many_scores_is_followed_to_its_end(monkeypatch):
    monkeypatch.setattr(families, "MOST", 3)
    calls, _, _ = asleep(Text(manual), steps)
    others, _, _ = awake(Text(manual), steps)
    assert len(calls) == 2 * 15
    assert_same(calls, others)


def test_a_fused_layer_in_a_forward_that_is_slept_through_is_seen():
    calls, out, watch = asleep(Encoded().eval(), steps)
    others, expected, _ = awake(Encoded().eval(), steps)
    assert [call.module for call in others].count("encoder") == 2
    assert_same(calls, others)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    assert watch._waking.slept > 5


def test_a_mode_around_everything_is_on_again_after_a_forward():
    rows, calls = torch.randn(1, HEADS, 3, DIM), []
    model = Text(manual)
    with FlowWatch(model, sink=kept(calls)) as watch:
        steps(model)
        assert watch._waking.slept > 8
        assert torch._C._len_torch_function_stack() == 1
        watch.begin_step(1, 3)
        manual(rows, rows, rows)
    assert len(calls) == 2 * 15 + 1
    assert torch._C._len_torch_function_stack() == 0
