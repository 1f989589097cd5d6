import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.trace import CacheLayer
from kvtrace_tui.screens.pages.memory import memory_rows


def text(trace, number=2, width=110):
    return "\n".join(
        "".join(words for words, _ in row) for row in memory_rows(trace, number, width)
    )


def test_layers_that_are_alike_share_a_line_with_rows_and_bytes():
    shown = text(synthetic_trace(Shape(layers=3, kv_heads=2, dim=8, prompt=5)))
    # 7 rows of 2 heads × (8 + 8) float32
    assert (
        "0–2      dynamic, 2 kv heads × 8                      7       128 B       896 B each"
        in shown
    )
    assert "if every head had its own K and V" in shown
    assert "2.00×" in shown


def test_a_layer_that_the_cache_does_not_number_has_the_number_of_its_reader():
    trace = synthetic_trace(Shape(layers=3))
    meta = trace.meta
    unnumbered = tuple(replace(layer, layer=-1) for layer in meta.cache_layers)
    trace.source.meta = replace(meta, cache_layers=unnumbered)
    assert "\n   0–2      dynamic" in text(trace)
    trace.source.meta = replace(meta, cache_layers=unnumbered, sites=())
    assert "\n   –        dynamic" in text(trace)


def test_where_not_every_layer_attends_the_grids_numbers_are_named():
    trace = synthetic_trace(Shape(layers=2))
    assert "on the grid" not in text(trace)
    meta = trace.meta
    odd = tuple(replace(layer, layer=2 * layer.index + 1) for layer in meta.cache_layers)
    trace.source.meta = replace(meta, cache_layers=odd)
    assert "1, 3     dynamic" in text(trace)
    assert "on the grid L0 reads 1, L1 reads 3" in text(trace)
    assert "on the grid L0 reads 1, …" in text(trace, width=29)


def test_states_are_constant_and_hold_no_rows():
    trace = synthetic_trace(Shape(layers=2))
    meta = trace.meta
    state = CacheLayer(2, 4, "state", 1, 1, 1, state_bytes=2048)
    trace.source.meta = replace(meta, cache_layers=(*meta.cache_layers, state))
    shown = text(trace)
    assert "4        state, constant" in shown
    assert "Recurrent states take 2.00 KiB, whatever the length" in shown


def test_a_run_whose_bytes_were_not_measured_draws_no_chart():
    trace = synthetic_trace()
    for number, step in list(trace.source.steps.items()):
        trace.source.steps[number] = replace(step, cost=replace(step.cost, cache_bytes=0))
    assert "nothing was measured" in text(trace)


def test_every_width_is_kept():
    for width in (20, 40, 300):
        assert text(synthetic_trace(), width=width)


def test_no_line_is_cut_on_a_small_screen():
    trace = synthetic_trace(Shape(layers=3, heads=4, kv_heads=2))
    meta = trace.meta
    state = CacheLayer(3, 3, "state", 1, 1, 1, state_bytes=123_456)
    model = replace(meta.model, context_length=131_072)
    trace.source.meta = replace(meta, model=model, cache_layers=(*meta.cache_layers, state))
    assert max(len(line.rstrip()) for line in text(trace, width=78).splitlines()) <= 78


def test_what_a_full_context_takes_is_said_for_one_sequence_of_a_batch():
    trace = synthetic_trace(Shape(layers=2, kv_heads=2, dim=8, prompt=5))
    meta = trace.meta
    trace.source.meta = replace(meta, model=replace(meta.model, context_length=100))
    for number, step in list(trace.source.steps.items()):
        twice = {name: getattr(step, name) * 2 for name in ("tokens", "positions", "chosen")}
        caches = tuple(replace(one, attended=one.attended * 2) for one in step.caches)
        trace.source.steps[number] = replace(step, **twice, caches=caches)
    # 100 rows of 2 layers, 2 heads × (8 + 8) float32
    assert "At its context length of 100 tokens one sequence would take 25.0 KiB." in text(trace)


@pytest.mark.parametrize(
    ("width", "words"),
    [(80, " sliding 4096, 2 kv × 8 "), (100, " sliding, window 4096, 2 kv heads × 8 ")],
)
def test_what_a_layer_is_is_said_in_fewer_words_before_it_is_cut(width, words):
    trace = synthetic_trace()
    layers = [replace(one, kind="sliding", window=4096) for one in trace.meta.cache_layers]
    trace.source.meta = replace(trace.meta, cache_layers=tuple(layers))
    assert words in text(trace, width=width)
