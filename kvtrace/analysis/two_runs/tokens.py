"""Which tokens two runs were both fed, and where their tokens part."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from kvtrace.analysis.two_runs.align import Pair, paired, paths
from kvtrace.trace import Trace


class TokensPart(Struct, frozen=True):
    """Where the runs were fed different tokens.

    Attributes:
        sequence, position: Of the token.
        old, new: Its id in each run; None: the run ended before.
        chosen: By the runs; else the prompts part.
        margin: How far the old run's choice led its next one, in logits; None where unknown.
    """

    sequence: int
    position: int
    old: int | None
    new: int | None
    chosen: bool
    margin: float | None


def aligned(old: Trace, new: Trace) -> tuple[list[Pair], bool]:
    """Sequences of both, and whether their places are positions that were told.

    Positions may be what differs: then more tokens agree in the order in which they were fed.
    """
    by_position, by_order = (
        paired(paths(old, told=told), paths(new, told=told)) for told in (True, False)
    )
    more = shared(by_order) > shared(by_position)
    return (by_order, False) if more else (by_position, True)


def shared(pairs: list[Pair]) -> int:
    """Tokens that both runs were fed."""
    return sum(len(pair.shared) for pair in pairs)


def parted(old: Trace, pairs: list[Pair]) -> Iterator[TokensPart]:
    """Where the tokens of each pair of sequences part, if they do."""
    for pair in pairs:
        mine, theirs, positions = pair.old, pair.new, pair.shared
        rest = sorted((set(mine) | set(theirs)) - set(positions))
        if not rest:
            continue
        at = rest[0]
        here = mine[at].token if at in mine else None
        there = theirs[at].token if at in theirs else None
        chosen = bool(positions) and all(
            at not in path or path[at].step != path[positions[-1]].step for path in (mine, theirs)
        )
        margin = None
        if chosen and here is not None:
            last = mine[positions[-1]]
            top = old.step(last.step).top
            margin = top[last.sequence].margin if last.sequence < len(top) else None
        yield TokensPart(pair.sequence, at, here, there, chosen, margin)


def nothing_shared(old: Trace, new: Trace, parts: tuple[TokensPart, ...]) -> str:
    """Why there is no token that both were fed."""
    if not parts:
        return "the runs have no tokens in common"
    one = parts[0]
    words = [
        "nothing" if token is None else repr(trace.token_text(token))
        for trace, token in ((old, one.old), (new, one.new))
    ]
    return f"the prompts differ from the first token on: {words[0]} and {words[1]}"
