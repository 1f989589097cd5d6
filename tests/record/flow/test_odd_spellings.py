"""Odd spellings of attention: recorded right, so that they repeat themselves, or named."""

import pytest
import torch
from msgspec.structs import replace

from builders import attentions, odd_attentions
from builders.attentions import Model, token_ids
from builders.odd_attentions import OTHER, PIECES, SAME, TOLD
from kvtrace.record.flow import FlowWatch
from kvtrace.record.steps.check import check


def watched(model, ids, past=None):
    """(what forward returned, calls, the watch)."""
    calls = []

    def keep(call):
        calls.append(replace(call, output=call.output.clone()))

    with torch.no_grad(), FlowWatch(model, sink=keep) as watch:
        result = model(ids, past)
    return result, calls, watch


def both(spelling, sequences=2):
    """Calls and the plain rows of a prompt, then of a token; and the watch of each."""
    model = Model(spelling)
    prompt, token = token_ids(sequences, 6), token_ids(sequences, 1, seed=2)
    (_, past), calls, watch = watched(model, prompt)
    _, later, watch_2 = watched(model, token, past)
    return (
        (calls, model.expected(prompt), watch),
        (later, model.expected(token, past), watch_2),
    )


def named(function):
    return function.__name__


@pytest.mark.parametrize("spelling", SAME, ids=named)
def test_the_rows_of_plain_attention_are_found_in_an_odd_one(spelling):
    plain = both(attentions.matmul)
    for (calls, expected, watch), (others, _, _) in zip(both(spelling), plain, strict=True):
        assert watch.unseen == ()
        assert len(calls) == len(expected)
        for call, rows, other in zip(calls, expected, others, strict=True):
            factor = call.scale / attentions.SCALE
            torch.testing.assert_close(call.queries * factor, rows.queries)
            torch.testing.assert_close(call.keys, rows.keys)
            torch.testing.assert_close(call.values, rows.values)
            torch.testing.assert_close(call.output, rows.output, rtol=1e-4, atol=1e-5)
            shape = (2, 4, call.queries.shape[2], call.keys.shape[2])
            everything = torch.ones(shape, dtype=torch.bool)
            mine, theirs = (
                everything if one.visible is None else one.visible.expand(shape)
                for one in (call, other)
            )
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("spelling", [*OTHER, *PIECES], ids=named)
def test_what_is_recorded_of_another_attention_repeats_it(spelling):
    for calls, expected, watch in both(spelling):
        assert watch.unseen == ()
        assert len(calls) == len(expected) or (spelling in PIECES and len(calls) > len(expected))
        for error, size in check(calls, range(len(calls))).values():
            assert error <= 1e-5 * max(size, 1.0)


def test_heads_that_read_one_row_have_one_kv_head():
    for calls, _, _ in both(odd_attentions.multi_query_squeezed):
        assert {(call.queries.shape[1], call.keys.shape[1]) for call in calls} == {(4, 1)}


def test_an_output_that_is_gated_in_place_is_recorded_as_the_attention_made_it():
    for calls, expected, _ in both(odd_attentions.gated_in_place):
        for call, rows in zip(calls, expected, strict=True):
            torch.testing.assert_close(call.output * 0.5, rows.output)


def test_a_linear_map_whose_weight_are_the_keys_is_a_product():
    (calls, expected, watch), (later, _, _) = both(odd_attentions.linear_over_keys, sequences=1)
    assert watch.unseen == ()
    for call, rows in zip(calls, expected, strict=True):
        torch.testing.assert_close(call.keys, rows.keys)
        torch.testing.assert_close(call.output, rows.output)
    assert len(later) == 2


@pytest.mark.parametrize(
    "spelling", [odd_attentions.without_sequences, odd_attentions.tensordot_of_each_head]
)
def test_tokens_and_heads_without_an_axis_of_sequences_are_one_sequence(spelling):
    for calls, expected, watch in both(spelling, sequences=1):
        assert watch.unseen == ()
        for call, rows in zip(calls, expected, strict=True):
            torch.testing.assert_close(call.keys, rows.keys)
            torch.testing.assert_close(call.output, rows.output)


def test_weights_that_leave_one_part_over_have_a_sink_of_logit_zero():
    for calls, _, _ in both(odd_attentions.off_by_one):
        for call in calls:
            torch.testing.assert_close(call.sinks, torch.zeros(4), rtol=0, atol=1e-4)


def test_tokens_that_attend_to_rows_of_their_own_are_named():
    (calls, _, watch), _ = both(odd_attentions.local_blocks)
    assert calls == []
    assert {sentence.split(":")[0] for sentence in watch.unseen} == {"layers.0", "layers.1"}


@pytest.mark.parametrize("spelling", TOLD, ids=named)
def test_what_is_no_softmax_of_products_is_named_and_not_reported(spelling):
    for calls, _, watch in both(spelling):
        assert calls == []
        assert {sentence.split(" ")[0].rstrip(":") for sentence in watch.unseen} == {
            "layers.0",
            "layers.1",
        }


@pytest.mark.parametrize("spelling", [*SAME, *OTHER, *PIECES, *TOLD], ids=named)
def test_results_keep_their_bits(spelling):
    model = Model(spelling)
    with torch.no_grad():
        plain = model(token_ids(2, 6))[0]
    (seen, _), _, _ = watched(model, token_ids(2, 6))
    assert torch.equal(plain, seen)
