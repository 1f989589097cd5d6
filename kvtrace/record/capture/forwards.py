"""From a pass that is over to a `Forward`: like the step before as a whole, or read in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from typing import Any, NamedTuple

from torch import Tensor, nn

from kvtrace.record.capture.alike import Pattern, pattern_of
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.attention.reader import Reader
from kvtrace.record.capture.caches.copied import copies
from kvtrace.record.capture.caches.finished import updates_of
from kvtrace.record.capture.caches.handing import cache_given
from kvtrace.record.capture.caches.tracker import CacheTracker, lingering
from kvtrace.record.capture.caches.updates import HALVES, beside, cross_half
from kvtrace.record.capture.clock import Took
from kvtrace.record.capture.forward import CacheUpdate, Forward, Lingering
from kvtrace.record.capture.running import Pass
from kvtrace.record.capture.tokens.bare_rows import width_in
from kvtrace.record.capture.tokens.inputs import (
    fitted,
    hidden_width,
    logits_of,
    shape_of,
    tokens_of,
)
from kvtrace.record.flow import FlowWatch
from kvtrace.record.paged.follower import Follower


class _Seen(NamedTuple):
    """What was seen of a pass, as `Forward` describes it. A tuple, because every step has one.

    Attributes:
        tokens, calls, before, updates, left: Of the forward.
        shape: (sequences, new) of it.
        used: Serials of the caches that it had to do with.
    """

    tokens: Tensor | None
    shape: tuple[int, int]
    calls: Sequence[AttentionCall]
    before: tuple[int, ...]
    updates: Sequence[CacheUpdate]
    used: frozenset[int]
    left: tuple[Lingering, ...] = ()


class Forwards:
    """Those of one model.

    Attributes:
        count: How many there were so far.
        reader: Reads what attended in them.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        names: Mapping[int, str],
        tracker: CacheTracker,
        requests: Follower,
    ) -> None:
        """Nothing is read yet.

        Args:
            modules: Of the model, by their paths.
            names: Paths of the modules, by their identity.
            tracker: Knows the caches.
            requests: Parts a forward of several requests.
        """
        self.count = 0
        self.reader = Reader(names)
        self._tracker = tracker
        self._requests = requests
        self._hidden = hidden_width(modules.values())
        self._pattern: Pattern | None = None

    def given(self, arguments: Mapping[str, object]) -> frozenset[int]:
        """Serials of the caches among the arguments, as far as they were met."""
        given = cache_given(arguments)
        parts = (given, *[getattr(given, part, None) for part in HALVES])
        return frozenset([self._tracker.serial(one) for one in parts if self._tracker.met(one)])

    def of(
        self,
        part: str,
        module: nn.Module,
        one: Pass,
        arguments: Mapping[str, object],
        result: Any,
        took: Took,
        flow: FlowWatch | None,
    ) -> list[Forward]:
        """Of a pass that is over; several where it was of several requests.

        Args:
            part: Of the model: "model" or "encoder".
            module: The entrance that was called.
            one: The pass.
            arguments: What it was called with.
            result: What it gave back.
            took: Its time.
            flow: What follows the data flow.
        """
        start = perf_counter_ns()
        self._requests.see(one)
        tokens = tokens_of(arguments)
        shape = shape_of(tokens, arguments)
        like = self._pattern
        batch = like.batch(one, self._tracker) if like and shape == (like.sequences, 1) else None
        if batch is not None and like is not None:
            used = frozenset((like.cache,))
            seen = _Seen(tokens, shape, batch.calls(), batch.before, batch.updates(), used)
        else:
            seen = self._in_full(part, one, arguments, result, flow, (tokens, shape))
            # what else its cache holds is counted beside what it was given
            made = pattern_of(one, seen.updates, seen.calls, self.reader.facts)
            like = like if made is None or seen.left else made
            self._pattern = like
        met = () if batch is not None else copies(self._tracker, seen.updates)
        donors = frozenset[int]().union(*(each.donors for each in met)) - seen.used
        forward = Forward(
            number=self.count,
            model=module,
            part=part,
            arguments=arguments,
            tokens=seen.tokens,
            sequences=seen.shape[0],
            new=seen.shape[1],
            calls=seen.calls,
            updates=seen.updates,
            took=took,
            updates_before=seen.before,
            lingering=seen.left,
            copies=met,
            pending=self._tracker.pending(donors) if donors else (),
            changes=self._tracker.take_changes(seen.used),
            recurrent=(*one.recurrent, *beside(self._tracker, arguments, result, seen.updates)),
            logits=logits_of(result, seen.shape, self._hidden or width_in(arguments)),
            result=result,
            own_ns=one.own_ns + perf_counter_ns() - start,
            choices=() if one.choosing is None else tuple(one.choosing.choices),
            pattern=like,
            batch=batch,
        )
        forwards = self._requests.parts(forward, one)
        self.count += len(forwards)
        return forwards

    def _in_full(
        self,
        part: str,
        one: Pass,
        arguments: Mapping[str, object],
        result: Any,
        flow: FlowWatch | None,
        came: tuple[Tensor | None, tuple[int, int]],
    ) -> _Seen:
        """What is seen of a pass that is not like the one before, in which tokens came in."""
        cross = cross_half(cache_given(arguments), result)
        updates = updates_of(self._tracker, one, cross)
        found = self.reader.calls(one, part, flow)
        tokens, shape = fitted(*came, found[0], logits_of(result, came[1]), arguments)
        calls, before = self.reader.fitting(found, *shape)
        left = lingering(self._tracker, calls, updates, cross)
        used = self.given(arguments) | {update.cache for update in updates}
        return _Seen(tokens, shape, calls, before, updates, used, left)
