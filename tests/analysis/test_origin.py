"""Where attended rows come from."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.analysis.rows.origin import origin, tokens_of_rows
from kvtrace.errors import MissingError
from kvtrace.trace import CacheEvent, CacheStep, Run, Step, Trace


def test_a_row_of_the_prompt_was_written_by_the_prefill():
    trace = synthetic_trace()
    found = origin(trace, 4, 1, 2)
    assert (found.written, found.first, found.position, found.slot) == (0, 0, 2, 2)
    assert found.token == trace.step(0).tokens[0][2]
    assert not found.changed
    assert not found.evicted
    assert not found.padding


def test_a_decoded_row_was_written_by_its_step():
    trace = synthetic_trace()
    found = origin(trace, 4, 1, 7)
    assert found.written == 3
    assert found.token == trace.step(3).tokens[0][0]


def test_slot_and_position_part_after_eviction_and_the_row_that_goes_is_said():
    trace = synthetic_trace(Shape(window=4))
    oldest = origin(trace, 5, 0, 0)
    assert (oldest.slot, oldest.position, oldest.written) == (0, 6, 2)
    assert oldest.evicted
    assert not origin(trace, 5, 0, 1).evicted


def test_a_row_beyond_those_attended_is_refused_with_both_numbers():
    with pytest.raises(MissingError, match=r"row 40 .* given 9 rows"):
        origin(synthetic_trace(), 4, 0, 40)


def test_a_shared_layer_names_the_site_that_wrote():
    trace = synthetic_trace()
    meta = trace.source.meta
    shared = replace(meta.sites[2], reads=1, source="shared", shared_from=1)
    trace.source.meta = replace(meta, sites=(*meta.sites[:2], shared))
    assert origin(trace, 4, 2, 0).shared_from == 1


def test_a_row_rewritten_in_place_keeps_the_token_of_its_position():
    trace = synthetic_trace()
    step = trace.step(4)
    # the step rewrote all 8 old rows and appended one: cells 20 to 28
    group = CacheStep(
        (0, 1, 2), 20, 9, ((Run(20, 9, 0, 0),),), ((Run(20, 9, 0, 0),),), 8, 9, rewritten=8
    )
    trace.source.steps[4] = replace(step, caches=(group,))
    del trace.source.steps[5], trace.source.steps[6]
    found = origin(trace, 4, 0, 6)
    assert (found.written, found.first) == (4, 2)
    assert found.changed
    assert found.token == trace.step(2).tokens[0][0]
    tokens = [t for number in range(5) for t in trace.step(number).tokens[0]]
    assert tokens_of_rows(trace, 4, 0).tolist() == tokens


def test_a_row_that_nothing_keeps_was_made_by_the_step_that_attends_to_it():
    trace = synthetic_trace()
    layers = tuple(replace(one, kind="uncached") for one in trace.meta.cache_layers)
    trace.source.meta = replace(trace.meta, cache_layers=layers)
    text = tuple(token for number in range(5) for token in trace.step(number).tokens[0])
    step = trace.step(4)  # fed all of the text again
    groups = tuple(replace(one, kept=((),)) for one in step.caches)
    positions = (tuple(range(len(text))),)
    trace.source.steps[4] = replace(step, tokens=(text,), positions=positions, caches=groups)
    found = origin(trace, 4, 1, 2)
    assert (found.written, found.first, found.token) == (4, 4, text[2])
    assert not found.changed
    assert not found.evicted


def test_padding_has_a_negative_position():
    trace = synthetic_trace()
    step = trace.step(4)
    group = step.caches[0]
    runs = (replace(group.attended[0][0], position=-2),)
    trace.source.steps[4] = replace(step, caches=(replace(group, attended=(runs,)),))
    assert origin(trace, 4, 0, 1).padding
    assert not origin(trace, 4, 0, 2).padding


def batch_of_two():
    """Prefill of two sequences of 3, a reorder in which both take over the second, a decode."""
    trace = synthetic_trace()
    prefill = Step(
        0,
        "prefill",
        None,
        ((1, 2, 3), (4, 5, 6)),
        ((0, 1, 2), (0, 1, 2)),
        (7, 8),
        caches=(
            CacheStep(
                (0, 1, 2),
                0,
                3,
                ((Run(0, 3, 0, 0),), (Run(3, 3, 0, 0),)),
                ((Run(0, 3, 0, 0),), (Run(3, 3, 0, 0),)),
                0,
                3,
            ),
        ),
        sites=trace.step(0).sites,
    )
    mine = (Run(3, 3, 0, 0), Run(6, 1, 3, 3))
    theirs = (Run(3, 3, 0, 0), Run(7, 1, 3, 3))
    decode = Step(
        1,
        "decode",
        0,
        ((7,), (8,)),
        ((3,), (3,)),
        (None, None),
        caches=(CacheStep((0, 1, 2), 6, 1, (mine, theirs), (mine, theirs), 3, 4),),
        sites=trace.step(1).sites,
        events=(CacheEvent("reorder", (0, 1, 2), (3,) * 3, (3,) * 3, (1, 1)),),
    )
    trace.source.steps = {0: prefill, 1: decode}
    return Trace(trace.source)


def test_after_a_reorder_rows_name_the_sequence_that_wrote_them():
    trace = batch_of_two()
    assert tokens_of_rows(trace, 1, 0, 0).tolist() == [4, 5, 6, 7]
    assert tokens_of_rows(trace, 1, 0, 1).tolist() == [4, 5, 6, 8]
    found = origin(trace, 1, 0, 1, sequence=0)
    assert (found.sequence, found.written, found.token) == (1, 0, 5)


def test_rows_of_an_encoder_have_no_token():
    trace = synthetic_trace()
    meta = trace.source.meta
    trace.source.meta = replace(meta, sites=(replace(meta.sites[0], kind="cross"), *meta.sites[1:]))
    assert origin(trace, 4, 0, 0).token == -1
    assert np.all(tokens_of_rows(trace, 4, 0) == -1)


def test_a_step_lost_to_damage_leaves_the_rest_known():
    trace = synthetic_trace()
    del trace.source.steps[2]
    found = origin(trace, 4, 0, 6)
    assert found.written is None
    assert found.token == -1
    assert origin(trace, 4, 0, 5).written == 1
