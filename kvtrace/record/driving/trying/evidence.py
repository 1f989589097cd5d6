"""What a way does, tried on private copies with a few tokens.

Two questions decide: do the logits after cached steps equal those of one pass over the same
tokens, and does a step see anything of the tokens before? A way that answers no may still be the
one its author meant: then that is a bug to be shown, and it is said.
"""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Literal

import torch
from msgspec import Struct, field
from msgspec.structs import replace
from torch import Tensor, nn

from kvtrace.errors import KvtraceError
from kvtrace.paths import line_of
from kvtrace.record.chance import OTHER_SEED
from kvtrace.record.driving.trying.contents import contents
from kvtrace.record.driving.trying.patterns import Pattern
from kvtrace.record.driving.trying.private import nothing_left
from kvtrace.record.driving.ways.calls import Calls, CannotBeginError, Shape
from kvtrace.record.driving.ways.passed_on import NoCacheError
from kvtrace.record.driving.ways.way import Way

NOT_FINITE = "no logit is finite"

PREFILL, STEPS = 5, 2
"""Tokens of a trial. Five at once, so that a size of one is told from a size of many."""

FEW = PREFILL + STEPS

Verdict = Literal["agrees", "differs", "forgets", "fails"]

_LIBRARIES = re.compile(r"[/\\\\](site-packages|dist-packages|kvtrace[/\\\\]record)[/\\\\]|^<")
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


class Tried(Struct, frozen=True):
    """What came of a way.

    Attributes:
        way: The one.
        verdict: "agrees" with a pass over all tokens; "differs"; "forgets", its steps see nothing
            of the tokens before; "fails".
        difference: Largest difference of logits, over the largest logit.
        why: Of a failure.
        keeps: Something in the model or its cache changed in a decode step.
        back: Where the cache comes back.
        seen: What its first calls were given.
        as_theirs: The user's own generation calls it so.
        reached: Tokens that went in well before a call failed.
        begins: What comes before the first call went well.
        alone: No pass over all tokens was at hand to hold its steps against.
    """

    way: Way
    verdict: Verdict
    difference: float = 0.0
    why: str = ""
    keeps: bool = False
    back: str = ""
    seen: tuple[Pattern, ...] = ()
    as_theirs: bool = False
    reached: int = 0
    begins: bool = True
    alone: bool = False


class Trials(Struct, frozen=True):
    """A place to try ways.

    Attributes:
        fresh: Makes a private copy of the model.
        model: The original, never called.
        tokens: Ids to try with.
        prefill: How many of them are the prompt.
        shape: Of the model's output.
        script: The user's file, whose containers are restored after each trial.
    """

    fresh: Callable[[], nn.Module]
    model: nn.Module
    tokens: Sequence[int]
    prefill: int
    shape: Shape
    script: ModuleType | None = None
    _seen: dict[str, Tensor] = field(default_factory=dict)

    def run(self, way: Way, plain: Way | None = None) -> Tried:
        """Try a cached way: the prompt, then single tokens, against passes over all tokens.

        Where nothing takes more than one token there is no such pass: seeing the earlier tokens
        is all that can be asked.

        Args:
            way: What to try.
            plain: How a pass is made of a way that never takes more than one token.
        """
        alone = way.singly and plain is None
        steps: list[Tensor] = []
        begun: Calls | None = None
        try:
            with nothing_left(self.model, self.script), _calm():
                begun = calls = self._calls(way)
                for end in range(self.prefill, len(self.tokens) + 1):
                    steps.append(calls.step(self.tokens[:end]).clone())
                keeps = self._keeps(way)
            if way.inside and way.again and not self._takes_the_newest(way):
                raise NoCacheError("fed all tokens, it computed all of them again")
            whole = steps[1:] if alone else self._whole((plain or way) if way.singly else way)
        except Exception as error:
            begins = not isinstance(error, CannotBeginError)
            reached = 0 if begun is None else begun.fed
            return Tried(way, "fails", why=reason_of(error), begins=begins, reached=reached)
        told = Tried(
            way, "agrees", 0.0, "", keeps, calls.comes_back, tuple(calls.seen), alone=alone
        )
        difference = max(map(_difference, steps[1:], whole), default=0.0)
        if difference <= self.tolerance and not (alone and self._forgets(way, steps)):
            return replace(told, difference=difference)
        if not self._forgets(way, steps):
            return replace(told, verdict="differs", difference=difference)
        keeps = keeps and (not way.inside or self._keeps_of_tokens(way))
        return replace(told, verdict="forgets", keeps=keeps, difference=difference)

    def plain(self, way: Way) -> Tried:
        """Try a way without a cache: once over all tokens."""
        try:
            found = self._rows(way, self.tokens)[-1]
        except Exception as error:
            return Tried(way, "fails", why=reason_of(error))
        if not bool(torch.isfinite(found).any()):
            return Tried(way, "fails", why=NOT_FINITE)
        return Tried(way, "agrees")

    def sees_the_first_token(self, way: Way) -> bool:
        """Whether the last row's logits depend on the first token."""
        other = [self.tokens[1], *self.tokens[1:]]
        try:
            one, two = (self._rows(way, each)[-1] for each in (self.tokens, other))
        except Exception:
            return False
        return not _same(one, two)

    def heeds_its_mask(self, way: Way) -> bool:
        """Whether a mask as long as the cache is given, and a step depends on it."""
        given = tuple(one for one in way.given if not one.padded)
        if len(given) == len(way.given):
            return False
        ends = (self.prefill, self.prefill + 1)
        try:
            with nothing_left(self.model, self.script), _calm():
                masked, bare = self._calls(way), self._calls(replace(way, given=given))
                return any(
                    not torch.equal(masked.step(self.tokens[:end]), bare.step(self.tokens[:end]))
                    for end in ends
                )
        except Exception:  # without it, the model can't be called
            return True

    def is_causal(self, way: Way) -> bool | None:
        """Whether rows stay when tokens are added; None when only the last row is returned."""
        short = self.tokens[: self.prefill]
        try:
            first, second = (self._rows(way, each) for each in (short, self.tokens))
        except Exception:
            return None
        if first.shape[0] != len(short) or second.shape[0] != len(self.tokens):
            return None
        return _difference(first, second[: len(short)]) <= self.tolerance

    def drawn(self, way: Way) -> float:
        """How far two passes over the same tokens are apart, over the largest logit.

        Between them nothing but random numbers differs: 0 where none are drawn, or it fails.
        """
        try:
            first = self._rows(way, self.tokens)
            with nothing_left(self.model, self.script), _calm():
                torch.manual_seed(OTHER_SEED)
                return _difference(first, self._calls(way).rows(self.tokens))
        except Exception:
            return 0.0

    def replaces_all(self, way: Way) -> bool:
        """Whether a step leaves no number as it was in what it is handed: a state, and no rows."""
        with nothing_left(self.model, self.script), _calm():
            calls = self._calls(way)
            calls.step(self.tokens[: self.prefill])
            before = [one.clone() for one in calls.kept]
            calls.step(self.tokens[: self.prefill + 1])
            after = calls.kept
        alike = [one.shape for one in before] == [one.shape for one in after]
        return alike and not any(map(_keeps_some, before, after))

    @property
    def tolerance(self) -> float:
        """Up to which a difference may be rounding."""
        kinds = {one.dtype for one in self.model.parameters() if one.is_floating_point()}
        return max((_TOLERANCE.get(kind, 3e-2) for kind in kinds), default=1e-3)

    # -- the runs ----------------------------------------------------------------------------

    def _rows(self, way: Way, tokens: Sequence[int]) -> Tensor:
        """Logits of all rows, on a model that saw nothing before, [rows, vocab]; kept."""
        key = f"{way} {list(tokens)}"
        if key not in self._seen:
            with nothing_left(self.model, self.script), _calm():
                self._seen[key] = self._calls(way).rows(tokens).clone()
        return self._seen[key]

    def _calls(self, way: Way) -> Calls:
        return Calls(self.fresh(), way, len(self.tokens) + 1, self.shape, self.tokens[:3])

    def _whole(self, way: Way) -> list[Tensor]:
        """For each decode step, logits of a pass over all its tokens on a model of its own."""
        found = []
        for end in range(self.prefill + 1, len(self.tokens) + 1):
            with nothing_left(self.model, self.script), _calm():
                found.append(self._calls(way).step(self.tokens[:end]).clone())
        return found

    def forgets(self, way: Way) -> bool:
        """Whether another prompt leaves the decode steps of a way that works as they are."""
        with nothing_left(self.model, self.script), _calm():
            calls, ends = self._calls(way), range(self.prefill, len(self.tokens) + 1)
            steps = [calls.step(self.tokens[:end]).clone() for end in ends]
        return self._forgets(way, steps)

    def _forgets(self, way: Way, steps: list[Tensor]) -> bool:
        other = [self.tokens[1]] * (self.prefill - 1) + [self.tokens[self.prefill - 1]]
        tokens = [*other, *self.tokens[self.prefill :]]
        ends = range(self.prefill, len(tokens) + 1)
        with nothing_left(self.model, self.script), _calm():
            calls = self._calls(way)
            again = [calls.step(tokens[:end]).clone() for end in ends]
        # the second step sees the first through any cache, so the first one counts
        return _same(steps[1], again[1])

    def _takes_the_newest(self, way: Way) -> bool:
        """Whether a step that is given all tokens again heeds the newest alone."""
        end = self.prefill + 1
        other = [self.tokens[1]] * self.prefill + [self.tokens[self.prefill]]
        found = []
        for tokens in (self.tokens[:end], other):
            with nothing_left(self.model, self.script), _calm():
                calls = self._calls(way)
                calls.step(self.tokens[: self.prefill])
                found.append(calls.step(tokens).clone())
        return _same(*found)

    def _keeps(self, way: Way) -> bool:
        """Whether a decode step leaves anything new inside of the model."""
        if not way.inside:
            return True
        with nothing_left(self.model, self.script):
            calls = self._calls(way)
            calls.step(self.tokens[: self.prefill])
            before = contents(calls.model, self.script)
            calls.step(self.tokens[: self.prefill + 1])
            return contents(calls.model, self.script) != before

    def _keeps_of_tokens(self, way: Way) -> bool:
        """Whether what a step leaves inside depends on its tokens: tables of places do not."""
        found = []
        for tokens in (self.tokens, self.tokens, [self.tokens[1]] * len(self.tokens)):
            with nothing_left(self.model, self.script):
                calls = self._calls(way)
                calls.step(tokens[: self.prefill])
                calls.step(tokens[: self.prefill + 1])
                found.append(contents(calls.model, self.script))
        one, again, of_others = found
        # what differs for the same tokens was drawn
        return any(one[at] == again.get(at) != of_others.get(at) for at in one)


@contextmanager
def _calm() -> Iterator[None]:
    """Warnings of somebody's model are theirs, and come again in the run; so does its log."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest difference over the largest number, of what is finite in both."""
    if one.shape != other.shape:
        return float("inf")
    one, other = one.float(), other.float()
    finite = torch.isfinite(one)
    if not torch.equal(finite, torch.isfinite(other)) or not bool(finite.any()):
        return float("inf")
    one, other = one[finite], other[finite]
    return float((one - other).abs().max()) / max(float(other.abs().max()), 1e-30)


def _keeps_some(one: Tensor, other: Tensor) -> bool:
    """Whether some number that is not zero is still there."""
    return bool(((one == other) & (one != 0)).any())


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether logits are equal but for what rows next to each other do to rounding."""
    if one.dtype not in _TOLERANCE or torch.equal(one, other):
        return torch.equal(one, other)
    if not bool(torch.isfinite(one).any() or torch.isfinite(other).any()):
        return True
    return _difference(one, other) < 16 * torch.finfo(one.dtype).eps


def reason_of(error: BaseException) -> str:
    """One line of an exception, with the user's line where it was raised in their code."""
    lines = str(error).strip().splitlines()
    text = next((line.strip() for line in lines if line.strip()), "")
    if isinstance(error, KvtraceError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [one for one in frames if not _LIBRARIES.search(one.filename)]
    place = f" ({line_of(theirs[-1])})" if theirs else ""
    return f"{type(error).__name__}: {text}".rstrip(": ") + place
