from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.analysis.course import course
from kvtrace.trace import ROWS_UNKNOWN, CacheEvent, Note


def altered(trace, **changes):
    """The same trace with other steps: a function of the step for each number named s0, s1, …"""
    for name, change in changes.items():
        number = int(name[1:])
        trace.source.steps[number] = change(trace.source.steps[number])
    return trace


def prefills(trace, *numbers):
    return altered(trace, **{f"s{n}": lambda step: replace(step, phase="prefill") for n in numbers})


def test_a_decode_says_its_prompt_and_its_steps():
    assert course(synthetic_trace()) == "prefill of 5, 6 decode steps"
    assert course(synthetic_trace(Shape(prompt=1, decode=1))) == "prefill of 1, 1 decode step"
    assert course(synthetic_trace(Shape(decode=0))) == "prefill of 5"


def test_chunks_are_listed():
    assert course(prefills(synthetic_trace(), 1, 2)) == "chunked prefill 5+1+1, 4 decode steps"


def test_many_equal_chunks_are_counted():
    trace = prefills(synthetic_trace(Shape(decode=9)), *range(1, 9))
    assert course(trace) == "chunked prefill 5+8×1, 1 decode step"


def twice(step):
    return replace(step, tokens=step.tokens * 2, positions=step.positions * 2)


def test_a_batch_says_whether_it_is_padded():
    trace = altered(synthetic_trace(Shape(decode=0)), s0=twice)
    assert course(trace) == "batch of 2: prefill of 5"
    padded = lambda step: replace(step, positions=(step.positions[0], (-2, -1, 0, 1, 2)))  # noqa: E731
    assert course(altered(trace, s0=padded)) == "left-padded batch of 2: prefill of 5"


def test_rows_that_change_places_are_beams():
    trace = altered(synthetic_trace(Shape(decode=1)), s0=twice, s1=twice)
    event = CacheEvent("reorder", (0,), (5,), (5,), (1, 0))
    altered(trace, s1=lambda step: replace(step, events=(event,)))
    assert course(trace) == "2 beams: prefill of 5, 1 decode step"


def test_a_second_start_is_counted_and_reads_like_no_decode_step():
    anew = lambda step: replace(step, parent=None)  # noqa: E731
    trace = altered(synthetic_trace(), s4=anew)
    assert course(trace) == "prefill of 5, 3 decode steps, and 1 more start"
    trace = altered(synthetic_trace(), s3=anew, s4=anew)
    assert course(trace) == "prefill of 5, 2 decode steps, and 2 more starts"


def test_a_prompt_at_the_first_place_over_rows_left_there_is_another_start():
    again = lambda step: replace(step, phase="prefill", positions=((0,),))  # noqa: E731
    trace = altered(synthetic_trace(), s4=again)
    assert course(trace) == "prefill of 5, 3 decode steps, and 1 more start"


def test_rows_that_are_not_one_a_token_are_no_prefill_and_no_batch():
    trace = altered(synthetic_trace(Shape(decode=0)), s0=twice)
    trace.source.notes = [Note("note", f"not recomputed: 29 ids for 4 rows: {ROWS_UNKNOWN}")]
    assert course(trace) == "1 step whose rows stand for no single token"
