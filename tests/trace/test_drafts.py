"""Whether several tokens are a part of a prompt, or drafts: what follows tells."""

from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.analysis.course import course
from kvtrace.analysis.phase import phase
from kvtrace.analysis.summary import summary
from kvtrace.trace import CacheEvent


def taking_in(*spans):
    """A run whose steps after a prompt of 5 take in these places; their tokens are 10 more."""
    trace = synthetic_trace(Shape(decode=len(spans)))
    end = 5
    for number, (first, stop) in enumerate(spans, 1):
        step = trace.source.steps[number]
        crop = CacheEvent("crop", (0,), (end,), (first,))
        trace.source.steps[number] = replace(
            step,
            phase="decode" if stop - first == 1 else "prefill",
            tokens=(tuple(range(10 + first, 10 + stop)),),
            positions=(tuple(range(first, stop)),),
            chosen=(None,),
            events=(crop,) if first < end else (),
        )
        end = stop
    return trace


def phases(trace):
    return [phase(trace, step) for step in trace]


def test_tokens_of_which_the_next_step_gives_some_up_were_drafts():
    trace = taking_in((5, 9), (7, 11), (9, 10))
    assert phases(trace) == ["prefill", "decode", "decode", "decode"]
    assert course(trace) == "prefill of 5, 3 decode steps"
    assert summary(trace, 1).sentence.startswith("step 1 computed 4 rows")


def test_drafts_of_which_all_stay_are_told_by_others_near_them():
    assert phases(taking_in((5, 9), (9, 12), (12, 16), (13, 14)))[1:] == ["decode"] * 4


def test_parts_of_a_prompt_stay_parts_of_a_prompt():
    trace = taking_in((5, 9), (9, 13), (13, 14), (14, 15))
    assert phases(trace)[:3] == ["prefill"] * 3
    assert course(trace) == "chunked prefill 5+4+4, 2 decode steps"


def test_longer_words_of_a_user_among_drafts_are_a_prompt():
    trace = taking_in((5, 7), (6, 8), (8, 20), (20, 22), (21, 22))
    assert phases(trace) == ["prefill", "decode", "decode", "prefill", "decode", "decode"]


def test_what_is_taken_back_whole_was_no_draft():
    scored = taking_in((5, 8), (5, 9), (5, 7))
    assert phases(scored) == ["prefill"] * 4


def test_the_token_that_drafts_begin_with_was_chosen_before_them():
    trace = taking_in((5, 9), (7, 11), (9, 10))
    trace.source.steps[0] = replace(trace.source.steps[0], chosen=(None,))
    assert [trace.chosen(number) for number in range(3)] == [15, 17, 19]
