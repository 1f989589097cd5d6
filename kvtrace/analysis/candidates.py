"""Which tokens could have come next after a step, and which one was chosen."""

from __future__ import annotations

from math import exp

from msgspec import Struct

from kvtrace.trace import Trace
from kvtrace.trace.drafts import given_up


class Candidate(Struct, frozen=True):
    """One possible next token.

    Attributes:
        token: Its id.
        text: Its text, raw: pass it through `kvtrace.text.token` to show it.
        logit, probability: From the recorded logits, before any sampling changed them; None for a
            chosen token that is not among the recorded ones.
        chosen: Whether it was the one.
    """

    token: int
    text: str
    logit: float | None
    probability: float | None
    chosen: bool


class Candidates(Struct, frozen=True):
    """The candidates after a step, most probable first.

    Attributes:
        ranked: As many as were recorded; empty if no logits were seen, or if those that were
            follow a token that was given up, such as a rejected draft.
        chosen: The chosen one, also when it is not in `ranked`; None while unknown.
        fed: Whether all that is known of `chosen` is that it was fed next: nobody said it was
            chosen, and it is not the likeliest. It may be sampled, or forced on the model.
        margin: How far the best logit leads the second; None with fewer than two.
        rest: Probability of all tokens that are not in `ranked`.
    """

    ranked: tuple[Candidate, ...]
    chosen: Candidate | None
    margin: float | None
    rest: float
    fed: bool = False


def candidates(trace: Trace, number: int, sequence: int = 0) -> Candidates:
    """The tokens with the highest logits after a step.

    probability = exp(logit - logsumexp over the whole vocabulary): the model's own, at
    temperature 1.

    Raises:
        MissingError: There is no such step.
    """
    step = trace.step(number)
    chosen = trace.chosen(number, sequence)
    if sequence >= len(step.top) or given_up(trace.source, step, sequence):
        one = None if chosen is None else _candidate(trace, chosen, None, None, chosen)
        return Candidates((), one, None, 1.0, _only_fed(trace, number, sequence, chosen, None))
    top = step.top[sequence]
    ranked = tuple(
        _candidate(trace, token, logit, _exp(logit - top.logsumexp), chosen)
        for token, logit in zip(top.ids, top.logits, strict=True)
    )
    found = next((one for one in ranked if one.chosen), None)
    if found is None and chosen is not None:
        found = _candidate(trace, chosen, None, None, chosen)
    seen = sum(one.probability for one in ranked if one.probability is not None)
    fed = _only_fed(trace, number, sequence, chosen, top.ids[0] if top.ids else None)
    return Candidates(ranked, found, top.margin, max(0.0, 1.0 - seen), fed)


def _only_fed(
    trace: Trace, number: int, sequence: int, chosen: int | None, likeliest: int | None
) -> bool:
    """Whether a token is known by nothing but that it was fed next.

    What is recorded as chosen in a program's own loop is what the program fed next; only after the
    last step is there nothing but its word.
    """
    if chosen is None or chosen == likeliest:
        return False
    if trace.meta.sampling.driver == "caller" and number != trace.numbers[-1]:
        return True
    return trace.chosen(number, sequence, told=True) is None


def _candidate(
    trace: Trace, token: int, logit: float | None, probability: float | None, chosen: int | None
) -> Candidate:
    return Candidate(token, trace.token_text(token), logit, probability, token == chosen)


def _exp(difference: float) -> float:
    """exp, where a logit that is not finite says nothing but NaN."""
    try:
        return exp(difference)
    except OverflowError:
        return float("nan")
