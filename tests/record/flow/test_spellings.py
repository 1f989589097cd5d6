"""Every spelling of attention, in prefill and decode: the rows it consumed, a call a layer."""

from pathlib import Path

import pytest
import torch

from builders import attentions
from builders.attentions import PLAIN, SCALE, SINKS, SLOPES, Model, token_ids
from kvtrace.record.flow import FlowWatch


def watched(model, ids, past=None):
    """(what forward returned, calls, the watch)."""
    calls = []
    with FlowWatch(model, sink=calls.append) as watch:
        result = model(ids, past)
    return result, calls, watch


def assert_same_rows(call, rows, *, scaled=True):
    factor = call.scale / SCALE if scaled else 1.0
    torch.testing.assert_close(call.queries * factor, rows.queries)
    torch.testing.assert_close(call.keys, rows.keys)
    torch.testing.assert_close(call.values, rows.values)
    torch.testing.assert_close(call.output, rows.output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize("spelling", PLAIN, ids=lambda one: one.__name__)
def test_prefill_and_decode_give_the_rows_that_were_multiplied(spelling, sequences):
    model = Model(spelling)
    prompt, token = token_ids(sequences, 6), token_ids(sequences, 1, seed=2)
    with torch.no_grad():
        (_, past), calls, watch = watched(model, prompt)
        _, later, _ = watched(model, token, past)
        assert watch.unseen == ()
        for found, expected in (
            (calls, model.expected(prompt)),
            (later, model.expected(token, past)),
        ):
            assert [call.module for call in found] == ["layers.0", "layers.1"]
            for call, rows in zip(found, expected, strict=True):
                assert_same_rows(call, rows)


@pytest.mark.parametrize("spelling", PLAIN, ids=lambda one: one.__name__)
def test_the_mask_of_a_prompt_is_causal_and_a_single_query_sees_everything(spelling):
    model = Model(spelling)
    with torch.no_grad():
        (_, past), calls, _ = watched(model, token_ids(2, 5))
        _, later, _ = watched(model, token_ids(2, 1), past)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    assert all(torch.equal(call.visible.expand(2, 4, 5, 5)[1, 3], causal) for call in calls)
    assert all(call.visible is None or bool(call.visible.all()) for call in later)
    assert all(call.bias is None and call.sinks is None for call in calls + later)


@pytest.mark.parametrize(("sequences", "tokens"), [(4, 4), (1, 4), (4, 1), (8, 4), (4, 8), (2, 8)])
@pytest.mark.parametrize("spelling", PLAIN, ids=lambda one: one.__name__)
def test_sizes_that_coincide_with_the_number_of_heads_are_told_apart(spelling, sequences, tokens):
    model = Model(spelling)
    with torch.no_grad():
        _, calls, watch = watched(model, token_ids(sequences, tokens))
        expected = model.expected(token_ids(sequences, tokens))
    assert len(calls) == 2, watch.unseen
    for call, rows in zip(calls, expected, strict=True):
        assert_same_rows(call, rows)


@pytest.mark.parametrize("spelling", PLAIN, ids=lambda one: one.__name__)
def test_results_keep_their_bits(spelling):
    model = Model(spelling)
    plain = model(token_ids(2, 6))[0]
    (seen, _), _, _ = watched(model, token_ids(2, 6))
    assert torch.equal(plain, seen)


def test_a_prompt_in_chunks_has_a_mask_offset_by_the_rows_before():
    model = Model(attentions.matmul)
    with torch.no_grad():
        _, past = model(token_ids(1, 3))
        _, calls, _ = watched(model, token_ids(1, 2), past)
    expected = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    assert torch.equal(calls[0].visible[0, 0], expected)


def test_a_softcap_is_given_as_such():
    model = Model(attentions.softcapped)
    with torch.no_grad():
        _, calls, _ = watched(model, token_ids(1, 6))
    assert [(call.softcap, call.scale) for call in calls] == [
        (0.5, pytest.approx(SCALE)),
        (0.5, pytest.approx(SCALE)),
    ]
    assert calls[0].bias is None


def test_alibi_is_a_bias_and_never_holds_the_mask():
    model = Model(attentions.with_alibi)
    with torch.no_grad():
        _, calls, _ = watched(model, token_ids(2, 5))
    distance = torch.arange(5)[None, :] - torch.arange(5)[:, None]
    expected = (SLOPES[:, None, None] * distance).tril()
    torch.testing.assert_close(calls[0].bias[0], expected, rtol=0, atol=1e-5)
    assert calls[0].bias.shape[0] == 1


@pytest.mark.parametrize("how", [attentions.with_sinks, attentions.with_sinks_narrowed_away])
def test_sinks_are_given_per_head_though_the_row_maximum_was_taken_off(how):
    model = Model(how)
    with torch.no_grad():
        (_, past), calls, _ = watched(model, token_ids(2, 5))
        _, later, _ = watched(model, token_ids(2, 1), past)
    for call in calls + later:
        torch.testing.assert_close(call.sinks, SINKS, rtol=0, atol=1e-4)
        assert call.keys.shape[2] == call.values.shape[2]


def test_calls_name_the_line_of_the_users_code():
    model = Model(attentions.matmul)
    with torch.no_grad():
        _, calls, _ = watched(model, token_ids(1, 3))
    file, line = calls[0].code.split(":")
    text = Path(attentions.__file__).read_text().splitlines()[int(line) - 1]
    assert file == "attentions.py"
    assert "F.softmax(scores" in text


def test_many_decode_steps_prove_themselves_and_stay_right():
    model = Model(attentions.matmul)
    with torch.no_grad(), FlowWatch(model, sink=(calls := []).append) as watch:
        _, past = model(token_ids(1, 4))
        for step in range(40):
            calls.clear()
            expected = model.expected(token_ids(1, 1, seed=step), past)
            calls.clear()
            _, past = model(token_ids(1, 1, seed=step), past)
            assert_same_rows(calls[1], expected[1])
    assert watch.unseen == ()
