"""Finds out how a model is called: by its signature, and by trying."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace
from torch import nn

from kvtrace.errors import ModelError
from kvtrace.record.driving.trying.evidence import (
    FEW,
    NOT_FINITE,
    Trials,
    Tried,
)
from kvtrace.record.driving.trying.failures import Failures, asks_for_a_cache
from kvtrace.record.driving.trying.found import FoundWay, found_cached, found_uncached
from kvtrace.record.driving.trying.observe import matches, observed
from kvtrace.record.driving.trying.patterns import Pattern
from kvtrace.record.driving.trying.preferred import closest_first, unless_their_own
from kvtrace.record.driving.trying.ready import trials_of
from kvtrace.record.driving.trying.stirred import stirred
from kvtrace.record.driving.trying.unnamed import shown, suspected
from kvtrace.record.driving.ways.beside import given_beside
from kvtrace.record.driving.ways.candidates import cached_ways, plain_ways
from kvtrace.record.driving.ways.roles import Signature, signature_of, widened
from kvtrace.record.driving.ways.way import Way
from kvtrace.record.driving.wish import Wish

TRIES, SECONDS = 400, 10.0
"""After this many ways, or this long, the best one so far is taken."""

FEW_TRIES, FEW_SECONDS = 60, 3.0
"""For modules inside of a model, of which there may be many."""

_OF_ROWS = re.compile(r"cache|past|kv|key|value|present")
"""Names that say that a parameter takes rows."""

_ENOUGH = 20
"""Ways that agree, where none of them is how the user's own code calls the model."""


@dataclass(slots=True)
class Search:
    """One search.

    Attributes:
        model: Never called itself; only copies of it are.
        wish: What is known of it.
        thorough: Look for long.
        count: Tokens to try with.
        failures: Ways that did not go, and which need not be tried any more.
        otherwise: A likelier way with the same cache, whose steps differ.
    """

    model: nn.Module
    wish: Wish = field(default_factory=lambda: Wish(()))
    thorough: bool = True
    count: int = FEW
    failures: Failures = field(default_factory=Failures)
    otherwise: Tried | None = None
    _states: set[str] = field(default_factory=set)
    _before: Sequence[str] = ()

    def run(self) -> FoundWay:
        """The way to call it.

        Raises:
            ModelError: None works; says what was tried and what to add.
        """
        signature = signature_of(self.model)
        trials, plain = self._begun(signature)
        others = given_beside(signature, self.model, self.wish.script) if plain is None else ()
        for told in others:
            if (plain := self._plain(told, trials)) is not None:
                signature = told
                break
        theirs = observed(trials, signature)
        signature = widened(signature, sorted(theirs.through))
        signature = shown(signature, theirs.calls, trials.prefill)
        self._before = theirs.before
        # a way whose rows see nothing of each other took tokens for sequences
        sound = plain if plain is not None and trials.sees_the_first_token(plain) else None
        best = self._cached(self._ways(signature, sound), trials, theirs.calls, plain)
        if sound is not None:
            best = _with_masks(_unless_left_empty(best, theirs.unfilled), trials, sound)
        if best is None and sound is None:
            self.failures.forgive()
            best = self._cached(self._singly(signature), trials, theirs.calls, None)
        if sound is not None and (best is None or best.verdict == "forgets"):
            best = self._suspected(signature, trials, sound) or best
        if sound is not None and best is not None and best.verdict == "forgets":
            best = self._one_by_one(signature, trials, sound, first=best.way) or best
        if sound is not None and best is None and self.failures.refused:
            only = self._one_by_one(signature, trials, sound, only=True)
            best = _unless_left_empty(only, theirs.unfilled)
        if best is not None:
            return found_cached(best, self.otherwise, plain, trials)
        if plain is None:
            raise ModelError(self.failures.complaint(signature))
        stumbled, states = self.failures.stumbled, self._states
        left, own = theirs.unfilled | states, states - theirs.unfilled
        return found_uncached(plain, trials, self.wish, stumbled, left, own)

    # -- without a cache -----------------------------------------------------------------------

    def _begun(self, signature: Signature) -> tuple[Trials, Way | None]:
        """Where ways are tried, and a way without a cache.

        Where the model's own weights let no logit show the text, but others do, with those.
        """
        trials = trials_of(self.model, self.wish, self.count)
        plain = self._plain(signature, trials)
        if plain is None or trials.sees_the_first_token(plain):
            return trials, plain
        others = stirred(trials)
        found = self._plain(signature, others)
        seen = found is not None and others.sees_the_first_token(found)
        return (others, found) if seen else (trials, plain)

    def _plain(self, signature: Signature, trials: Trials) -> Way | None:
        """The first way without a cache that works, and in which rows see what they should."""
        fallback: Way | None = None
        endless: Way | None = None
        for way in self._limited(plain_ways(signature)):
            tried = trials.plain(way)
            if tried.verdict == "fails":
                self.failures.why.setdefault(tried.why, str(way))
                endless = endless or (way if tried.why == NOT_FINITE else None)
                continue
            fallback = fallback or way
            if trials.sees_the_first_token(way) and trials.is_causal(way) is not False:
                return way
        return fallback or endless

    # -- with one --------------------------------------------------------------------------------

    def _cached(
        self, ways: Iterable[Way], trials: Trials, theirs: Sequence[Pattern], plain: Way | None
    ) -> Tried | None:
        """The best way with a cache; None when none runs.

        Theirs, where their own generation shows one; else the first whose cached steps agree with
        a pass over all tokens; else the first that sees the tokens before; else the first.
        """
        agreeing: list[Tried] = []
        differing: list[Tried] = []
        slicing: list[Tried] = []
        forgetting: list[Tried] = []
        for way in self._limited(ways):
            tried = trials.run(way)
            if tried.verdict == "fails":
                self.failures.note(tried)
            elif tried.keeps and theirs and matches(theirs, tried.seen):
                return replace(tried, as_theirs=True)
            elif tried.keeps and tried.verdict == "agrees":
                if plain is not None and trials.forgets(way):
                    continue  # whatever was passed as a cache, the model's layers saw nothing
                agreeing.append(tried)
                if not theirs or len(agreeing) > _ENOUGH:
                    break
            elif tried.keeps and way.feeds != "all":
                self._note(tried, trials, differing, forgetting)
            elif tried.keeps and tried.verdict == "differs":
                slicing.append(tried)
        differing = closest_first(differing, slicing)
        agreeing = unless_their_own(agreeing, differing)
        meant = self.failures.stumbled is None  # else a way that forgets is not it
        forgetting = [one for one in forgetting if meant and _speaks_of_a_cache(one.way, trials)]
        if agreeing and differing and _alike(agreeing[0].way, differing[0].way):
            self.otherwise = differing[0]
        return next(iter([*agreeing, *differing, *forgetting]), None)

    def _note(
        self, tried: Tried, trials: Trials, differing: list[Tried], forgetting: list[Tried]
    ) -> None:
        """Keep a wrong way in mind, unless what it passes on is no cache."""
        if not self._is_state(tried, trials):
            (differing if tried.verdict == "differs" else forgetting).append(tried)

    def _ways(self, signature: Signature, plain: Way | None) -> Iterator[Way]:
        """Cached ways; only those with the user's own beginning where there is one."""
        ways = cached_ways(
            signature, self.model, self.wish.script, plain, self.wish.beginning, self._before
        )
        if self.wish.beginning is None:
            yield from ways
        else:
            yield from (way for way in ways if way.cache is not None)

    def _singly(self, signature: Signature) -> Iterator[Way]:
        """Ways of a model that takes no more than one token at a time."""
        for layout in ("batch", "flat", "single"):
            ways = self._ways(signature, Way(signature, layout))
            yield from (replace(way, feeds="one") for way in ways if way.feeds == "new")

    def _one_by_one(
        self,
        signature: Signature,
        trials: Trials,
        plain: Way,
        *,
        first: Way | None = None,
        only: bool = False,
    ) -> Tried | None:
        """A way that agrees if the prompt, too, goes in a token at a time.

        A model may take the last token it is given as soon as it is handed a cache, even an empty
        one. How many it is given may tell it where that one stands: then it is given all of them.

        Args:
            signature: Of its forward.
            trials: Runs ways.
            plain: A way without a cache.
            first: Begins as its author means it, as far as is known.
            only: It is the only way with a cache there is: else the one whose steps differ least.
        """
        differing: list[Tried] = []
        self.failures.forgive()
        known = () if first is None else (first,)
        ways = [
            way
            for way in (*known, *self._ways(signature, plain))
            if way.feeds == "new" and (way.cache or asks_for_a_cache(way))
        ]
        singly = (replace(way, feeds=feeds) for way in ways for feeds in ("one", "each"))
        for way in self._limited(singly, few=True):
            tried = trials.run(way, plain)
            if tried.keeps and tried.verdict == "agrees":
                return tried
            differs = only and tried.keeps and tried.verdict == "differs"
            if differs and not self._is_state(tried, trials):
                differing.append(tried)
        return min(differing, key=lambda one: one.difference, default=None)

    def _suspected(self, signature: Signature, trials: Trials, plain: Way) -> Tried | None:
        """A way whose cache is a parameter that no name tells: it agrees, or is the closest.

        A wrong step that sees tokens which were not fed again got them from a cache.
        """
        differing: list[Tried] = []
        ways = (way for one in suspected(signature) for way in self._ways(one, plain))
        for way in self._limited(ways, few=True):
            tried = trials.run(way)
            if tried.keeps and tried.verdict == "agrees" and not trials.forgets(way):
                return tried
            differs = tried.keeps and tried.verdict == "differs" and way.feeds != "all"
            if differs and way.cache and not self._is_state(tried, trials):
                differing.append(tried)
        return min(differing, key=lambda one: one.difference, default=None)

    def _is_state(self, tried: Tried, trials: Trials) -> bool:
        """Whether what a wrong way passes on is a state of what went before, and holds no rows.

        Memories of segments, say: single tokens are not what their author passes with them.
        """
        cache = tried.way.cache
        if cache is None or any(_OF_ROWS.search(name.lower()) for name in cache.names):
            return False
        if not trials.replaces_all(tried.way):
            return False
        self._states.update(cache.names)
        return True

    def _limited(self, ways: Iterable[Way], *, few: bool = False) -> Iterator[Way]:
        few = few or not self.thorough
        tries, seconds = (FEW_TRIES, FEW_SECONDS) if few else (TRIES, SECONDS)
        until = time.monotonic() + seconds
        number = 0
        for way in ways:
            if number >= tries or (number and time.monotonic() > until):
                return
            if not self.failures.rule_out(way):
                number += 1
                yield way


def _with_masks(best: Tried | None, trials: Trials, plain: Way) -> Tried | None:
    """A way with the masks that a call without a cache needs, where its prompts look ahead else.

    Its last row, and so its steps, may hardly show that; how their own code calls it is theirs.
    """
    if best is None or best.as_theirs or trials.is_causal(best.way) is not False:
        return best
    names = {one.name for one in plain.signature.of("mask")} - {one.name for one in best.way.given}
    masks = [one for one in plain.given if one.name in names]
    if not masks or not trials.is_causal(plain):
        return best
    tried = trials.run(replace(best.way, given=(*best.way.given, *masks)))
    return tried if tried.keeps and tried.verdict == "agrees" else best


def _unless_left_empty(best: Tried | None, unfilled: frozenset[str]) -> Tried | None:
    """A way, but for one that takes for a cache what their own generation never passes rows in."""
    if best is None or best.verdict == "agrees" or best.way.cache is None:
        return best
    return None if unfilled.issuperset(best.way.cache.names) else best


def _speaks_of_a_cache(way: Way, trials: Trials) -> bool:
    """Whether a call differs from one without a cache by more than its tokens.

    A mask as long as a cache does, but not one that the model takes and never looks at.
    """
    return asks_for_a_cache(way) or trials.heeds_its_mask(way)


def _alike(one: Way, other: Way) -> bool:
    """Whether ways differ in nothing but what further parameters are given."""
    same = (
        one.cache is None or other.cache is None or one.cache.begin.said == other.cache.begin.said
    )
    return same and (one.inside, one.feeds) == (other.inside, other.feeds)
