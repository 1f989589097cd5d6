"""The way to call a model that a search ended with, and the sentences that tell people of it."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct

from kvtrace.errors import ModelError
from kvtrace.record.driving.trying.evidence import NOT_FINITE, Trials, Tried
from kvtrace.record.driving.ways.way import Way
from kvtrace.record.driving.wish import Wish
from kvtrace.text import safe


class FoundWay(Struct, frozen=True):
    """How a model is called, and how that is known.

    Attributes:
        way: The one.
        said: Sentences for people: the call, the cache, and what trying it showed.
        agrees: Cached steps gave the logits of a pass over all tokens.
        as_theirs: Their own generation calls it so.
    """

    way: Way
    said: tuple[str, ...]
    agrees: bool
    as_theirs: bool = False


def found_cached(
    best: Tried, otherwise: Tried | None, plain: Way | None, trials: Trials
) -> FoundWay:
    """The best way that has a cache.

    Args:
        best: As it was tried.
        otherwise: Another one, whose cached steps differ; None: there was none.
        plain: A way without a cache; None: there is none.
        trials: Know what comes of it.
    """
    way = best.way
    theirs = ", as its own code does" if best.as_theirs else ""
    said = [f"called as {way}{theirs}: {_feeding(way)}{_cache_of(way, best.back)}"]
    if best.alone and best.verdict == "agrees":
        said.append(
            "it takes no more than one token: there was no pass over all of them to try it against"
        )
        return FoundWay(way, tuple(said), True)
    if best.verdict == "agrees":
        if otherwise is not None:
            said.append(
                f"called as {otherwise.way}, its cached steps differ by {otherwise.difference:.1g} "
                "of the largest logit; if that is how you call it, there is a bug"
            )
        return FoundWay(way, tuple(said), True, best.as_theirs)
    drawn = "" if plain is None else _drawn(plain, trials)
    if drawn:
        return FoundWay(way, (*said, drawn), False, best.as_theirs)
    how = (
        "its cached steps see nothing of the tokens before"
        if best.verdict == "forgets"
        else f"its cached steps differ from a pass over all tokens by {best.difference:.1g} of the "
        "largest logit"
    )
    said.append(f"{how}: its cache has a bug, or it wants to be called otherwise")
    return FoundWay(way, tuple(said), False, best.as_theirs)


def found_uncached(
    plain: Way,
    trials: Trials,
    wish: Wish,
    stumbled: Tried | None,
    left_empty: Collection[str],
    states: Collection[str],
) -> FoundWay:
    """A way without a cache, for want of one with it.

    Args:
        plain: It.
        trials: Know what came of it.
        wish: How many tokens are asked for.
        stumbled: A way with a cache whose later calls raise; None: there was none.
        left_empty: Parameters in which their own generation passes no rows.
        states: Parameters that take a state, every number of which is another after a step.

    Raises:
        ModelError: It lacks what it reads beside its text.
    """
    prompt, steps = max(1, len(wish.prompt)), max(1, wish.new_tokens)
    all_rows = sum(prompt + step for step in range(steps))
    said = [
        f"called as {plain}: no cache was found, so every step computes all tokens again; in "
        f"{steps} steps that is {all_rows} rows, where a cache would leave {prompt + steps - 1}"
    ]
    if stumbled is not None:
        said.append(f"as {stumbled.way}, with a cache, a later call raises {stumbled.why}")
    takers = [one.name for one in plain.signature.of("cache") if one.name not in left_empty]
    if takers:
        said.append(
            f"nothing that was passed as {safe(takers[0], 60)} did for a cache; if it takes one, "
            "add make_cache(model, batch, max_len) to your file"
        )
    if states:
        said.append(
            f"{safe(min(states), 60)} is left empty: what comes back for it holds no rows that "
            "stay, and single tokens passed with it gave other logits than the whole text"
        )
    causal, drawn = trials.is_causal(plain), _drawn(plain, trials)
    lacking = _lacking(plain) if causal is False and not drawn else ""
    if lacking:
        raise ModelError(
            f"called as {plain}, its rows change when tokens are added: it reads something else "
            f"beside them, as {safe(lacking, 60)}. Record your own loop, with "
            "kvtrace.record('run.kvt') around it, or add to your file: "
            "def step(model, ids, cache, pos)"
        )
    if trials.plain(plain).why == NOT_FINITE:
        said.append(f"{NOT_FINITE}: look where its numbers end in the recorded tensors")
    elif drawn:
        said.append(drawn)
    elif causal is False:
        said.append(
            "its rows change when tokens are added: it is not causal, no cache can serve it"
        )
    return FoundWay(plain, tuple(said), causal is not False)


def _lacking(plain: Way) -> str:
    """What a model must be given besides, which nobody here has; empty: nothing.

    A decoder that is given no rows of an encoder reads its own text in their place, later tokens
    and all.
    """
    required = {one.name for one in plain.signature.parameters if one.required}
    found = (one.name for one in plain.given if one.said == "None" and one.name in required)
    return next(found, "")


def _drawn(plain: Way, trials: Trials) -> str:
    """That random numbers alone make passes differ, for people; empty: they don't."""
    far = trials.drawn(plain)
    if far <= trials.tolerance:
        return ""
    why = (
        "it is in training mode, where dropout is on: call model.eval()"
        if trials.model.training
        else "something draws random numbers in eval mode too, such as a dropout that is always on"
    )
    return (
        f"two passes over the same tokens differ by {far:.1g} of the largest logit, so that no "
        f"cache can be held against either: {why}"
    )


def _feeding(way: Way) -> str:
    if way.feeds == "all":
        return "all tokens at every step, of which it takes the new ones"
    if way.feeds == "each":
        return "all tokens at every step, the prompt's one after the other; it takes the newest"
    if way.feeds == "one":
        return "one token after the other, the prompt's too"
    return "the prompt at once, then single tokens"


def _cache_of(way: Way, back: str) -> str:
    """Where the cache is, for people."""
    first = " and ".join(one.said for one in way.first)
    before = f"; first {first}" if first else ""
    if way.cache is None:
        return f"{before}; the model keeps its cache inside"
    begin = f"{before}; the cache begins as {way.cache.begin.said}"
    place = f" and is {back}" if "place" in back else f" and comes back as {back}"
    moved = ", its offset is moved on after each call" if way.cache.moved else ""
    return f"{begin}{place if back else ''}{moved}"
