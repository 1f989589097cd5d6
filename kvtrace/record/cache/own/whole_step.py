"""What the calls of a forward tell together: the step it goes on with, and crops and reorders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from itertools import pairwise

from kvtrace.record.cache.own.call_effect import CallEffect
from kvtrace.record.flow.rows.row_step import RowStep
from kvtrace.trace import CacheEvent


def parent_of(made: Mapping[int, CallEffect], of_text: Set[int]) -> int | None:
    """The step whose rows a forward goes on with: not that whose encoder's rows it replaced.

    A first layer has equal rows for all texts that begin alike: most layers know best, those
    of the text before those of an encoder.

    Args:
        made: Cache layer → what a call of the forward did to it.
        of_text: Cache layers of the text itself, not of an encoder's.
    """
    steps = {store: one.seen.step for store, one in made.items()}
    kept = {s: one for s, one in steps.items() if s in of_text or not one.rows} or steps
    found = {s: one.parent for s, one in kept.items() if one.parent is not None}
    every = Counter(found.values())
    text = Counter(parent for store, parent in found.items() if store in of_text)
    return max(every, key=lambda parent: (text[parent], every[parent], parent), default=None)


def events_of(made: Mapping[int, CallEffect], of_text: Set[int]) -> tuple[CacheEvent, ...]:
    """What happened to the caches between the step before and a forward.

    Args:
        made: Cache layer → what a call of the forward did to it.
        of_text: Cache layers of the text itself, not of an encoder's.
    """
    if all(one.seen.step.fresh is not None for one in made.values()):
        return ()
    cached = {store: one.seen.step for store, one in made.items() if one.cached}
    out = []
    cut = {store: step for store, step in cached.items() if _cropped(step)}
    if cut:
        before = tuple(step.before for step in cut.values())
        after = tuple(step.before - _cropped(step) for step in cut.values())
        out.append(CacheEvent("crop", tuple(cut), before, after))
    # an encoder's rows are the same for all beams of a text, and those of a first layer for
    # all that read the same token: the deepest of as many layers knows best
    text = {store: step for store, step in cached.items() if store in of_text} or cached
    orders = Counter(
        tuple(int(n) for n in step.taken) for step in reversed(text.values()) if step.before
    )
    if orders:
        same = tuple(range(len(next(iter(orders)))))
        order = max(orders, key=lambda one: (orders[one], one == same))
        layers = tuple(
            store for store, step in cached.items() if tuple(step.taken.tolist()) == order
        )
        if order != same:
            sizes = tuple(cached[store].before for store in layers)
            among = max(cached[store].among for store in layers)
            out.append(CacheEvent(_kind(order, among), layers, sizes, sizes, order))
    return tuple(out)


def _kind(order: Sequence[int], among: int) -> str:
    """How sequences were taken over: each several times, some of them, or in any order."""
    if len(order) > among and list(order) == sorted(order):
        return "repeat"
    if len(order) < among and all(a < b for a, b in pairwise(order)):
        return "select"
    return "reorder"


def _cropped(step: RowStep) -> int:
    """Rows that were taken off the end before the step."""
    return 0 if step.parent is None or step.computed else step.cropped
