"""Calls that go the way of the call before are read like it; what differs is followed in full."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kvtrace.record.flow import FlowWatch
from kvtrace.record.flow.calls import call
from kvtrace.record.flow.calls.listen import Listening
from kvtrace.record.flow.modes.wake import Waking
from kvtrace.record.flow.plans import plans
from record.flow.test_waking import DIM, HEADS, Text, asleep, assert_same, awake, kept, steps

TURN = 8


def scaled(q, k, v):
    return F.softmax(q @ k.mT / DIM**0.5, -1) @ v


def with_function(q, k, v):
    return torch.matmul(torch.softmax(torch.matmul(q, k.transpose(2, 3)) * 0.5, dim=-1), v)


def as_einsum(q, k, v):
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k).mul(0.5).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def filled(q, k, v):
    hidden = torch.arange(k.shape[2]) < (3 if k.shape[2] > TURN else 0)
    return F.softmax((q @ k.mT * 0.5).masked_fill(hidden, float("-inf")), -1) @ v


def two_masks(q, k, v):
    """The same functions, given another mask from some length on."""
    scores = q @ k.mT * 0.5
    far = torch.zeros(k.shape[2])
    if k.shape[2] > TURN:
        far = torch.arange(k.shape[2]) * 0.25
    return F.softmax(scores + far, -1) @ v


def two_lines(q, k, v):
    """The same functions, written down twice."""
    if k.shape[2] > TURN:
        return F.softmax(q @ k.mT * 0.5, -1) @ v
    return F.softmax(q @ k.mT * 0.5, -1) @ v


def other_number(q, k, v):
    return F.softmax(q @ k.mT * (0.5 if k.shape[2] <= TURN else 0.25), -1) @ v


def other_values(q, k, v):
    """Weights of the scores of another product than the first."""
    first, second = q @ k.mT * 0.5, q @ k.flip(2).mT * 0.5
    return F.softmax(first if k.shape[2] <= TURN else second, -1) @ v


def one_more(q, k, v):
    """A function more, in between."""
    weights = F.softmax(q @ k.mT * 0.5, -1)
    return (weights if k.shape[2] <= TURN else weights * 0.5) @ v


def in_place(q, k, v):
    scores = q @ k.mT
    scores *= 0.5
    scores[..., : (2 if k.shape[2] > TURN else 0)] = float("-inf")
    return F.softmax(scores, -1) @ v


def by_tensor(q, k, v):
    """Scaled by a number in a tensor."""
    return F.softmax(q @ k.mT * torch.tensor(0.5 if k.shape[2] <= TURN else 0.25), -1) @ v


def stopped(q, k, v):
    """Weights that meet no values now and then."""
    weights = F.softmax(q @ k.mT * 0.5, -1)
    return v[:, :, -1:] * weights.sum() if k.shape[2] == TURN else weights @ v


EVERY_WAY = [scaled, with_function, as_einsum, filled, two_masks, two_lines, other_number]
EVERY_WAY += [other_values, one_more, in_place, by_tensor]


@pytest.mark.parametrize("how", EVERY_WAY)
def test_calls_are_read_as_if_each_had_been_followed(how):
    calls, out, watch = asleep(Text(how), steps)
    others, expected, other = awake(Text(how), steps)
    assert_same(calls, others)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    assert watch.unseen == other.unseen
    assert watch.notes == other.notes


@pytest.mark.parametrize("how", [scaled, with_function, as_einsum, filled])
def test_a_way_that_is_known_is_gone_without_following(how, monkeypatch):
    followed, known = [], []
    mixed, walked = Listening.mixed, Listening.walked
    monkeypatch.setattr(Listening, "mixed", lambda me, mix: followed.append(mix) or mixed(me, mix))
    monkeypatch.setattr(
        Listening, "walked", lambda me, walk: known.append(walk) or walked(me, walk)
    )
    asleep(Text(how), steps)
    assert len(followed) + len(known) == 2 * 15
    assert len(known) >= 2 * 6


def test_a_bias_that_begins_in_the_middle_is_seen_at_its_first_step():
    calls, _, _ = asleep(Text(two_masks), steps)
    biased = [call for call in calls if call.bias is not None]
    assert {call.keys.shape[2] for call in biased} == set(range(TURN + 1, 16))
    assert torch.allclose(biased[0].bias.diff(), torch.tensor(0.25), atol=1e-4)


def test_a_mask_that_begins_in_the_middle_is_seen_at_its_first_step():
    calls, _, _ = asleep(Text(filled), steps)
    masked = [call for call in calls if call.visible is not None]
    assert {call.keys.shape[2] for call in masked} == set(range(TURN + 1, 16))
    assert all(call.visible.sum() == call.keys.shape[2] - 3 for call in masked)


def test_weights_that_meet_no_values_leave_no_mode_and_no_call():
    model, calls = Text(stopped), []
    with FlowWatch(model, sink=kept(calls), only=lambda *_: True):
        steps(model)
        assert torch._C._len_torch_function_stack() == 0
    lengths = [call.keys.shape[2] for call in calls]
    assert lengths == [n for n in range(1, 16) if n != TURN for _ in range(2)]


def test_an_exception_on_a_known_way_is_the_models_own():
    raised = []

    def how(q, k, v):
        weights = F.softmax(q @ k.mT * 0.5, -1)
        if k.shape[2] == 12 and not raised:
            raised.append(True)
            weights @ v[:, :, :1]
        return weights @ v

    model, calls = Text(how), []
    with FlowWatch(model, sink=kept(calls), only=lambda *_: True):
        with pytest.raises(RuntimeError, match="batch2"):
            steps(model)
        assert torch._C._len_torch_function_stack() == 0
        before = len(calls)
        with torch.no_grad():
            model(torch.tensor([[1]]))
    assert len(calls) == before + 2


def test_rows_of_texts_that_begin_with_one_token_are_read_however_many_follow():
    def samples(model):
        for first in range(4):
            for layer in model.layers:
                layer.past = None
            for n in range(6):
                model(torch.tensor([[first + n]]))

    def one_token_again(model):
        with torch.no_grad():
            for n in (1, 1, 1, 2, 3):
                for layer in model.layers:
                    layer.past = None if n < 2 else layer.past
                model(torch.tensor([[n]]))

    for drive in (samples, one_token_again):
        calls, _, watch = asleep(Text(scaled), drive)
        assert_same(calls, awake(Text(scaled), drive)[0])
        assert watch.unseen == ()


def test_calls_of_a_module_keep_ways_of_their_own():
    def how(q, k, v):
        return scaled(q, k, v) + with_function(q, k, v.flip(2))

    calls, _, _ = asleep(Text(how), steps)
    others, _, _ = awake(Text(how), steps)
    assert_same(calls, others)
    assert [call.call for call in calls] == [0, 1] * 2 * 15


def test_heads_of_a_module_each_are_put_together_all_the_same():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(4)
            self.into = nn.ModuleList([nn.Linear(8, 12) for _ in range(HEADS)])
            self.embed = nn.Embedding(32, 8)

        def forward(self, tokens):
            x = self.embed(tokens)
            rows = (one(x).chunk(3, -1) for one in self.into)
            return torch.cat([F.softmax(q @ k.mT * 0.5, -1) @ v for q, k, v in rows], -1)

    def drive(model):
        with torch.no_grad():
            return [model(torch.tensor([[n, n + 1, 3]])) for n in range(12)]

    calls, _, _ = asleep(Heads(), drive)
    others, _, _ = awake(Heads(), drive)
    assert_same(calls, others)
    assert {call.queries.shape[1] for call in calls} == {HEADS}


def test_nothing_is_kept_of_a_forward_that_is_over():
    model = Text(scaled)
    with FlowWatch(model, sink=lambda _: None, only=lambda *_: True) as watch:
        steps(model)
        mode = watch._waking.mode
        assert isinstance(watch._waking, Waking)
        assert mode._walk is None
        assert mode._log is None
        assert mode.is_idle


def test_how_like_layers_lie_is_worked_out_once_and_proved_for_each(monkeypatch):
    made, proved = [], []
    make, refusal = plans.make, call.refusal
    monkeypatch.setattr(plans, "make", lambda *a: made.append(a[0].place) or make(*a))
    monkeypatch.setattr(call, "refusal", lambda one: proved.append(one) or refusal(one))
    calls, _, _ = asleep(Text(scaled), steps)
    assert len(calls) == 2 * 15
    assert len(made) == 2  # with one row, and with more
    assert len(proved) >= 2 * (1 + 2)
