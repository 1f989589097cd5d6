"""The sentence a learner reads, and the numbers behind it."""

import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.analysis.candidates import candidates
from kvtrace.analysis.cost.extent import extent
from kvtrace.analysis.rows.changes import changes, event_text
from kvtrace.analysis.summary import summary
from kvtrace.trace import CacheEvent, CacheStep, Cost, Flops, Run, TopLogits, Trace


def with_step(trace, number, **fields):
    source = trace.source
    source.steps[number] = replace(source.steps[number], **fields)
    return Trace(source)


def test_a_decode_step_says_what_it_computed_read_and_saved():
    trace = synthetic_trace()
    cost = Cost(Flops(qkv=2_000_000, head=100_000), Flops(qkv=28_800_000, head=100_000))
    trace = with_step(trace, 6, cost=cost, elapsed_ns=900_000)
    assert summary(trace, 6).sentence == (
        "step 6 computed 1 row of Q, K, V instead of 11 and read 10 rows from the cache: "
        "2.10 MFLOP instead of 28.9, 0.90 ms instead of 1.30"
    )


def test_units_are_named_twice_when_they_differ():
    trace = synthetic_trace()
    trace = with_step(trace, 6, cost=Cost(Flops(qkv=900), Flops(qkv=9_000_000)))
    assert "900 FLOP instead of 9.00 MFLOP" in summary(trace, 6).sentence


def test_time_without_the_cache_is_not_invented():
    trace = synthetic_trace()
    lane = trace.source.lane_steps["recomputed", 6]
    trace.source.lane_steps["recomputed", 6] = replace(lane, elapsed_ns=None)
    assert summary(trace, 6).sentence.endswith("0.90 ms (without the cache: not measured)")
    assert summary(with_step(trace, 6, elapsed_ns=0), 6).sentence.endswith("time not measured")


def test_a_prefill_fills_an_empty_cache_and_saves_nothing():
    said = summary(synthetic_trace(), 0).sentence
    assert said.startswith(
        "step 0 (prefill) computed 5 rows of Q, K, V and put K and V into an empty cache: "
    )
    assert "instead of" not in said


def test_a_second_chunk_of_a_prefill_reads_the_first():
    trace = synthetic_trace()
    trace = with_step(trace, 1, phase="prefill")
    assert summary(trace, 1).sentence.startswith(
        "step 1 (prefill) computed 1 row of Q, K, V instead of 6"
    )


def test_a_cache_that_is_written_anew_was_not_empty():
    trace = synthetic_trace()
    (group,) = trace.step(6).caches
    runs = ((Run(20, 11, 0, 0),),)
    anew = replace(group, first_cell=20, rows=11, attended=runs, kept=runs, rewritten=10)
    assert summary(with_step(trace, 6, caches=(anew,)), 6).sentence.startswith(
        "step 6 computed 1 row of Q, K, V instead of 11 and wrote 10 rows of the cache anew: "
    )


def test_rows_made_from_latents_are_not_said_to_be_read():
    """Every layer's K and V, 8 wide in 2 heads, come from latents that are 8 wide in one."""
    trace = synthetic_trace()
    source, meta = trace.source, trace.meta
    stores = meta.cache_layers
    made = [replace(one, kind="derived", layer=-1) for one in stores]
    latent = [
        replace(one, index=one.index + len(stores), kind="latent", num_kv_heads=1) for one in stores
    ]
    source.meta = replace(meta, cache_layers=(*made, *latent))
    (group,) = source.steps[6].caches
    held = replace(group, layers=tuple(one.index for one in latent))
    trace = with_step(trace, 6, caches=(group, held))
    assert summary(trace, 6).sentence.startswith(
        "step 6 computed 1 row of Q and latents instead of 11, read 10 rows from the cache "
        "and made K, V from 11: "
    )


def test_a_layer_whose_rows_stay_says_so():
    trace = synthetic_trace()
    (group,) = trace.step(2).caches
    still = replace(group, rows=0, attended=group.kept, length_before=group.length_after)
    assert changes(with_step(trace, 2, caches=(still,)), 2)[0].text == "7 rows, unchanged"


def test_a_batch_says_how_many_sequences():
    trace = synthetic_trace()
    step = trace.step(2)
    group = step.caches[0]
    two = CacheStep(group.layers, 6, 1, group.attended * 2, group.kept * 2, 6, 7)
    trace = with_step(trace, 2, tokens=step.tokens * 2, positions=step.positions * 2, caches=(two,))
    assert (
        "computed 1 row of Q, K, V in each of 2 sequences instead of 7"
        in summary(trace, 2).sentence
    )


def test_sliding_layers_beside_full_ones_read_fewer_rows():
    trace = synthetic_trace()
    step = trace.step(6)
    full = step.caches[0]
    window = (Run(8, 3, 0, 8),)
    groups = (
        replace(full, layers=(0, 2)),
        replace(full, layers=(1,), attended=(window,), kept=((Run(9, 2, 0, 9),),)),
    )
    trace = with_step(trace, 6, caches=groups)
    assert "read 2 to 10 rows from the cache, by layer" in summary(trace, 6).sentence
    assert [one.evicted for one in changes(trace, 6)] == [0, 1, 0]


def test_padding_counts_among_the_rows_a_model_without_cache_computes():
    trace = synthetic_trace()
    step = trace.step(6)
    group = step.caches[0]
    padded = (replace(group.attended[0][0], position=-2),)
    trace = with_step(
        trace, 6, positions=((8,),), caches=(replace(group, attended=(padded,), kept=(padded,)),)
    )
    assert extent(trace, 6).without_cache == 11


@pytest.mark.parametrize(
    ("head", "told", "would"), [(10, "7.01 kFLOP", "1.01 kFLOP"), (70, "7.07 kFLOP", "1.01 kFLOP")]
)
def test_a_model_without_a_cache_is_told_what_one_would_save(head, told, would):
    trace = synthetic_trace()
    meta = trace.source.meta
    trace.source.meta = replace(
        meta, cache_layers=tuple(replace(one, kind="uncached") for one in meta.cache_layers)
    )
    step = trace.step(2)
    group = replace(step.caches[0], first_cell=20, rows=7, kept=((),), length_after=0)
    flops = Flops(qkv=7_000, head=head, head_last=10, head_all=70)
    trace = with_step(
        trace,
        2,
        tokens=((0,) * 7,),
        positions=(tuple(range(7)),),
        caches=(group,),
        cost=Cost(flops, flops),
    )
    assert summary(trace, 2).sentence == (
        f"step 2 computed 7 rows of Q, K, V though only 1 row was new: {told}, 0.90 ms; "
        f"with a cache about {would} would do"
    )


def test_rows_that_nothing_kept_are_not_read_though_they_are_as_they_were():
    trace = synthetic_trace()
    group = replace(trace.step(2).caches[0], kept=((),), length_before=0, length_after=0)
    fields = {"tokens": ((0,) * 7,), "positions": (tuple(range(7)),)}
    trace = with_step(trace, 2, caches=(group,), **fields)
    assert group.rows == 1  # of the seven that it was given, six are in the trace already
    assert extent(trace, 2).read_most == 0
    assert "computed 7 rows of Q, K, V though only 1 row was new" in summary(trace, 2).sentence


def test_the_summary_names_layers_and_events():
    event = CacheEvent("crop", (0, 1, 2), (9, 9, 9), (6, 6, 6))
    trace = with_step(synthetic_trace(), 2, events=(event,))
    found = summary(trace, 2)
    assert [layer.text for layer in found.layers] == ["+1 row, 6 → 7"] * 3
    assert found.events == ("crop: 9 → 6 rows",)


def test_a_reorder_says_who_took_over_whom():
    event = CacheEvent("reorder", (0,), (4,), (4,), (1, 1, 0))
    assert event_text(event) == "reorder: sequences 0←1, 1←1, 2←0"


def test_a_change_that_left_every_length_as_it_was_says_so():
    event = CacheEvent("crop", (0, 1), (12, 12), (12, 12))
    assert event_text(event) == "crop: 12 rows before and after"


def test_a_window_says_what_it_evicts():
    trace = synthetic_trace(Shape(window=4))
    assert changes(trace, 5)[0].text == "+1 row, 1 row evicted, 3 → 3"


def test_the_row_that_a_ring_writes_over_is_evicted_though_nothing_looked_at_it_again():
    trace = synthetic_trace(Shape(layers=1))
    window = (Run(6, 2, 0, 6), Run(5, 1, 2, 5))  # position 6 went where 3 was
    group = CacheStep((0,), 7, 1, (window,), (window,), 3, 3)
    trace.source.steps[3] = replace(trace.step(3), caches=(group,))
    assert changes(trace, 3)[0].text == "+1 row, 1 row evicted, 3 → 3"


def test_probabilities_are_the_softmax_of_all_logits():
    trace = synthetic_trace()
    top = TopLogits((4, 2, 9), (2.0, 1.0, 0.0), 2.5)
    found = candidates(with_step(trace, 3, top=(top,), chosen=(2,)), 3)
    assert [round(one.probability, 4) for one in found.ranked] == [0.6065, 0.2231, 0.0821]
    assert found.chosen.token == 2
    assert found.ranked[1].chosen
    assert found.margin == 1.0
    assert round(found.rest, 4) == 0.0883


def test_a_chosen_token_outside_the_recorded_ones_has_no_probability():
    trace = synthetic_trace()
    top = TopLogits((4, 2), (2.0, 1.0), 2.5)
    found = candidates(with_step(trace, 3, top=(top,), chosen=(7,)), 3)
    assert found.chosen.token == 7
    assert found.chosen.probability is None
    assert candidates(with_step(trace, 3, top=(), chosen=(7,)), 3).ranked == ()


def test_logits_after_a_token_that_was_given_up_are_no_rivals_of_what_went_on_in_its_place():
    trace = synthetic_trace()
    place = trace.step(3).positions
    trace = with_step(trace, 3, top=(TopLogits((7, 2), (2.0, 1.0), 2.5),), chosen=(7,))
    assert candidates(trace, 3).chosen.probability is not None
    crop = CacheEvent("crop", (0,), (place[0][-1] + 1,), (place[0][-1],))
    found = candidates(with_step(trace, 4, parent=3, positions=place, events=(crop,)), 3)
    assert found.ranked == ()
    assert found.chosen.token == 7
    assert found.chosen.probability is None


def test_a_step_without_attention_claims_no_rows():
    trace = with_step(synthetic_trace(), 6, sites=(), caches=(), elapsed_ns=900_000)
    trace = with_step(trace, 6, cost=Cost(Flops(qkv=2_000_000), Flops(qkv=2_000_000)))
    assert summary(trace, 6).sentence == (
        "step 6 took in 1 token, and no attention was seen in it: 2.00 MFLOP, 0.90 ms"
    )
