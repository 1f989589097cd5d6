"""A caller who goes back to an earlier position leaves rows behind that no query sees."""

import torch

from builders.custom_drives import build, ids
from confusion.score import recorded
from kvtrace.analysis.checks import EQUAL, check

PROMPT, ACCEPTED, DRAFTED = 9, 11, 13


def drafted(model, tokens, ends, *, back=ACCEPTED):
    """A prompt, a draft whose last two tokens are rejected, and steps that go on before those."""

    @torch.no_grad()
    def drive():
        model(tokens[:, :PROMPT], torch.arange(PROMPT))
        draft = tokens[:, PROMPT:DRAFTED].clone()
        draft[:, ACCEPTED - PROMPT :] += 1
        model(draft, torch.arange(PROMPT, DRAFTED))
        start = ACCEPTED
        for end in ends:
            place = torch.arange(start, end) + back - ACCEPTED
            model(tokens[:, start:end], place)
            start = end

    return drive


def test_rejected_rows_that_a_buffer_still_holds_are_taken_off():
    model = build("index_copy")
    trace = recorded(model, drafted(model, ids(18), (12, 13, 14, 15, 16)))
    assert check(trace).verdict == EQUAL
    step = trace.step(2)
    assert step.positions == ((ACCEPTED,),)
    assert [event.kind for event in step.events] == ["crop"]
    assert trace.cache(2, 0, 0).positions.tolist() == list(range(ACCEPTED + 1))


def test_several_tokens_may_follow_those_that_were_accepted():
    model = build("index_copy")
    trace = recorded(model, drafted(model, ids(18), (15, 16)))
    assert check(trace).verdict == EQUAL
    assert trace.step(2).positions == (tuple(range(ACCEPTED, 15)),)


def test_going_back_too_far_gives_up_an_accepted_row_as_well():
    model = build("index_copy")
    trace = recorded(model, drafted(model, ids(18), (12, 13, 14), back=ACCEPTED - 1))
    assert trace.step(2).positions == ((ACCEPTED - 1,),)
    assert trace.cache(2, 0, 0).positions.tolist() == list(range(ACCEPTED))
