"""The shipped models in people's styles: cached as recomputed, and every call of theirs seen."""

import inspect
from pathlib import Path

import pytest
import torch

from builders.custom_drives import STYLES, UNCACHED, at_once, build, ids, through_the_cache
from kvtrace.record.flow import FlowWatch

PROMPT, TOTAL, LAYERS = 6, 14, 2
ATTENDING = [style for style in STYLES if style != "recurrent"]


def watched(style, prompt=PROMPT):
    model = build(style)
    with FlowWatch(model, sink=(calls := []).append) as watch:
        logits = through_the_cache(style, model, ids(TOTAL), prompt)
    return logits, calls, watch


@pytest.mark.parametrize("style", STYLES)
def test_a_custom_model_is_built_the_same_each_time_and_its_cache_is_right(style):
    cached = torch.cat(through_the_cache(style, build(style), ids(TOTAL), PROMPT), 1)
    whole = at_once(style, build(style), ids(TOTAL))
    torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("style", STYLES)
def test_watching_a_custom_model_changes_no_bit(style):
    plain = through_the_cache(style, build(style), ids(TOTAL), PROMPT)
    seen, _, _ = watched(style)
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))


@pytest.mark.parametrize("style", ATTENDING)
def test_every_layer_of_every_step_is_seen(style):
    _, calls, watch = watched(style)
    steps = TOTAL - PROMPT + 1
    assert watch.unseen == ()
    assert len(calls) == steps * LAYERS
    assert len({(call.module, call.call) for call in calls}) == LAYERS
    rows = [call.queries.shape[2] for call in calls[::LAYERS]]
    growing = style in UNCACHED
    assert rows == (list(range(PROMPT, TOTAL + 1)) if growing else [PROMPT] + [1] * (steps - 1))
    assert {call.level for call in calls} <= {2, 3}
    assert all(call.code.startswith(f"{style}.py:") for call in calls)
    assert len({call.scores_code for call in calls}) == 1


SCORED = {"tuple_cat": ("@ k", "@ v"), "einsum_heads": ("einsum", "einsum")}


@pytest.mark.parametrize("style", SCORED)
def test_the_lines_that_compute_the_scores_and_the_output_are_named(style):
    _, calls, _ = watched(style)
    lines = Path(inspect.getfile(type(build(style)))).read_text().splitlines()
    named = [calls[0].scores_code, calls[0].code]
    found = [lines[int(code.rpartition(":")[2]) - 1] for code in named]
    assert found[0] != found[1]
    assert all(word in line for word, line in zip(SCORED[style], found, strict=True))


@pytest.mark.parametrize("style", [style for style in ATTENDING if style not in UNCACHED])
def test_the_last_query_attends_to_what_a_run_without_cache_shows(style):
    _, calls, _ = watched(style)
    model = build(style)
    with FlowWatch(model, sink=(whole := []).append):
        at_once(style, model, ids(TOTAL))
    for cached, once in zip(calls[-LAYERS:], whole, strict=True):
        torch.testing.assert_close(
            cached.output[:, :, -1], once.output[:, :, -1], rtol=1e-3, atol=1e-4
        )
        torch.testing.assert_close(
            cached.queries[:, :, -1], once.queries[:, :, -1], rtol=1e-3, atol=1e-4
        )
        seen = _rows_seen(cached), _rows_seen(once)
        for one, other in zip(*seen, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def _rows_seen(call):
    """Keys and values that the last query sees, sorted, so that slots do not matter."""
    seq = call.keys.shape[2]
    visible = torch.ones(seq, dtype=torch.bool)
    if call.visible is not None:
        shape = (1, call.queries.shape[1], call.queries.shape[2], seq)
        visible = call.visible.expand(shape)[0, 0, -1]
    order = call.values[0, 0, visible, 0].argsort()
    return call.keys[0][:, visible][:, order], call.values[0][:, visible][:, order]


def test_heads_and_kv_heads_are_counted_as_the_models_have_them():
    expected = {
        "tuple_cat": (4, 4),
        "buffers_start_pos": (6, 2),
        "gqa_interleave": (6, 2),
        "latent_mla": (3, 1),
        "head_modules": (4, 4),
        "sinks_prealloc": (6, 3),
        "plain_functions": (4, 4),
    }
    for style, heads in expected.items():
        _, calls, _ = watched(style)
        assert {(call.queries.shape[1], call.keys.shape[1]) for call in calls} == {heads}, style


def test_what_is_special_about_a_style_is_in_its_calls():
    calls = {style: watched(style)[1] for style in ("softcap", "alibi", "relative_bias")}
    assert {call.softcap for call in calls["softcap"]} == {5.0}
    assert all(call.bias is not None for call in calls["alibi"] + calls["relative_bias"])
    sinks = build("sinks_prealloc").attn[1].sinks.detach()
    torch.testing.assert_close(watched("sinks_prealloc")[1][-1].sinks, sinks)
    (latent, *_) = watched("latent_mla")[1]
    assert (latent.keys.shape[-1], latent.values.shape[-1]) == (28, 20)


def test_a_recurrent_model_gives_nothing():
    _, calls, watch = watched("recurrent")
    assert calls == []
    assert watch.unseen == ()
