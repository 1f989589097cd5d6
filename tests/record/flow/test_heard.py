"""A forward of which only products and softmaxes are heard shows what one followed shows."""

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace

import kvtrace
from builders.custom_drives import STYLES, build, ids, through_the_cache
from builders.slept import (
    DIM,
    HEADS,
    Encoded,
    Text,
    assert_same,
    awake,
    biased,
    fused,
    heard,
    manual,
    other_scale,
    spelled,
    steps,
)
from kvtrace.record.flow.modes import heard as hearing

TOTAL, PROMPT = 20, 5
NEVER_HEARD = {
    "buffers_start_pos": "tensors made in inference mode do not count their changes",
    "gqa_interleave": "scores are masked in place",
    "softcap": "scores are masked in place",
    "multihead_module": "torch's fused layers keep the mode awake",
    "alibi": "a bias is read from what was added",
    "relative_bias": "a bias is read from what was added",
    "latent_mla": "two products make the scores",
    "head_modules": "heads are put together from several calls",
    "sinks_prealloc": "the softmax has a column more than there are rows",
    "recurrent": "nothing attends",
}


def num_heard(watch):
    """Forwards of which only the score was heard."""
    return watch._hearing._heard


@pytest.mark.parametrize("style", STYLES)
def test_a_custom_model_shows_the_same_when_it_is_only_heard(style):
    drive = lambda model: through_the_cache(style, model, ids(TOTAL), PROMPT)  # noqa: E731
    calls, logits, watch = heard(build(style), drive)
    others, expected, other = awake(build(style), drive)
    assert_same(calls, others)
    assert all(torch.equal(a, b) for a, b in zip(logits, expected, strict=True))
    assert watch.unseen == other.unseen
    assert (num_heard(watch) > 0) is (style not in NEVER_HEARD)


@pytest.mark.parametrize("how", [manual, fused])
def test_two_forwards_are_followed_before_all_others_are_only_heard(how):
    calls, _, watch = heard(Text(how), steps)
    assert len(calls) == 2 * 15
    assert num_heard(watch) == 15 - 2


@pytest.mark.parametrize("later", [fused, spelled, other_scale, biased])
@pytest.mark.parametrize("first", [manual, fused])
def test_code_that_changes_at_a_length_is_read_all_the_same(first, later):
    def how(q, k, v):
        return (first if k.shape[2] < 8 else later)(q, k, v)

    calls, out, watch = heard(Text(how), steps)
    others, expected, _ = awake(Text(how), steps)
    assert len(calls) == 2 * 15
    # code that was heard for the first time may be anywhere
    pairs = zip(calls, others, strict=True)
    assert_same(calls, [replace(one, code=one.code if call.code else "") for call, one in pairs])
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    assert num_heard(watch) >= 2
    assert watch.unseen == ()


def test_a_mask_that_begins_to_hide_rows_is_seen_in_the_same_step():
    def how(q, k, v):
        scores = q @ k.mT * 0.5
        if k.shape[2] >= 7:
            hidden = torch.arange(k.shape[2]) < k.shape[2] - 4
            scores = scores.masked_fill(hidden, float("-inf"))
        return F.softmax(scores, -1) @ v

    calls, _, watch = heard(Text(how), steps)
    others, _, _ = awake(Text(how), steps)
    assert_same(calls, others)
    assert num_heard(watch) > 2
    assert [int(call.visible.sum()) for call in calls if call.visible is not None] == [4] * 2 * 9


def test_rows_that_are_written_over_before_the_forward_ends_are_never_heard():
    place = torch.zeros(1, HEADS, 32, DIM)  # of all layers

    def how(q, k, v):
        keys = place[:, :, : k.shape[2]]
        keys.copy_(k)
        return manual(q, keys, v)

    calls, _, watch = heard(Text(how), steps)
    others, _, _ = awake(Text(how), steps)
    assert_same(calls, others)
    assert num_heard(watch) == 0


def test_an_output_that_is_changed_after_all_is_not_shown_as_it_was_not():
    def how(q, k, v):
        out = manual(q, k, v)
        if k.shape[2] == 9:
            changed.append(out)
        return out

    class Changing(Text):
        def forward(self, tokens):
            x = super().forward(tokens)
            for one in changed:
                one.add_(1)
            changed.clear()
            return x

    changed = []
    calls, _, watch = heard(Changing(how), steps)
    assert len(calls) == 2 * 15 - 2  # both layers of the ninth step
    assert num_heard(watch) > 2
    assert any("written over" in one for one in watch.unseen)


def test_large_rows_are_not_kept_until_a_forward_is_over(monkeypatch):
    monkeypatch.setattr(hearing, "ROOM", 64)
    calls, _, watch = heard(Text(manual), steps)
    assert len(calls) == 2 * 15
    assert num_heard(watch) == 0


def test_an_exception_in_a_heard_forward_leaves_nothing_of_it():
    raised = []

    def how(q, k, v):
        scores = q @ k.mT
        if k.shape[2] == 8 and not raised:
            raised.append(True)
            raise KeyError("in between")
        return F.softmax(scores, -1) @ v

    def drive(model):
        with pytest.raises(KeyError):
            steps(model)
        with torch.no_grad():
            return model(torch.tensor([[1]]))

    calls, _, watch = heard(Text(how), drive)
    assert len(calls) == 2 * 7 + 2
    assert watch._hearing.notes == []
    assert not watch._hearing.follows


def test_a_fused_layer_in_a_forward_that_is_heard_is_seen():
    calls, out, watch = heard(Encoded().eval(), steps)
    others, expected, _ = awake(Encoded().eval(), steps)
    assert [call.module for call in others].count("encoder") == 2
    assert_same(calls, others)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    assert num_heard(watch) > 5


@pytest.mark.parametrize("style", ["tuple_cat", "index_copy", "einsum_heads"])
def test_a_recording_holds_the_same_whether_steps_were_heard_or_followed(
    style, tmp_path, monkeypatch
):
    def recorded(name):
        model = build(style)
        if style == "index_copy":
            model.setup_caches(max_batch_size=1)
        with kvtrace.record(model, tmp_path / name, recompute="off"):
            through_the_cache(style, model, ids(TOTAL), PROMPT)
        return kvtrace.open(tmp_path / name)

    one = recorded("heard.kvt")
    monkeypatch.setattr(hearing, "TRIES", 0)
    other = recorded("followed.kvt")
    assert len(one) == len(other) == TOTAL - PROMPT + 1
    assert one.meta.sites == other.meta.sites
    assert one.meta.cache_layers == other.meta.cache_layers
    for mine, theirs in zip(one, other, strict=True):
        assert mine.caches == theirs.caches
        assert mine.cost == theirs.cost
        for site in range(len(one.meta.sites)):
            a, b = one.queries(mine.number, site), other.queries(mine.number, site)
            assert (a == b).all()


def test_a_recording_hears_all_forwards_after_the_first_decode_step(tmp_path, monkeypatch):
    read, heard_of = hearing.Hearing._read, []

    def counted(self, frame):
        heard_of.append(frame.path)
        read(self, frame)

    monkeypatch.setattr(hearing.Hearing, "_read", counted)
    model = Text(manual)
    with kvtrace.record(model, tmp_path / "heard.kvt", recompute="off"):
        steps(model)
    assert len(heard_of) == 15 - 2
