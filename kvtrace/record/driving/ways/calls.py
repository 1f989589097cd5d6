"""Calls a model step after step in one given way, and takes the logits and the cache from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.nn import functional

from kvtrace.errors import ModelError
from kvtrace.record.driving.trying.patterns import Pattern, pattern
from kvtrace.record.driving.ways.outputs import (
    Logits,
    NoLogitsError,
    all_rows,
    find_logits,
    last_row,
    part_of,
)
from kvtrace.record.driving.ways.passed_on import NoCacheError, PassedOn
from kvtrace.record.driving.ways.sizes import room_inside
from kvtrace.record.driving.ways.way import LENGTHS, Argument, Begin, Room, Way
from kvtrace.record.processes.local import device_of

_COMPARED = 3


class CannotBeginError(ModelError):
    """A cache can't begin so; the message says why."""


class Shape(Struct, frozen=True):
    """What is known of a model's output.

    Attributes:
        vocab_sizes: What the vocabulary may be, the likeliest first.
        width: Of its hidden rows; 0 when unknown.
    """

    vocab_sizes: tuple[int, ...] = ()
    width: int = 0


@dataclass(slots=True)
class Calls:
    """One run over one growing list of tokens.

    Attributes:
        model: Called as a module, so that whoever watches it sees the call.
        way: How.
        capacity: Tokens a cache must hold.
        shape: Of its output.
        source: What an encoder is given at every call, where the way has one.
        beside: Texts of further sequences that go in with the first one, each as long as it gets.
        seen: What the first calls were given, as far as calls can be compared.
    """

    model: nn.Module
    way: Way
    capacity: int
    shape: Shape = field(default_factory=Shape)
    source: Sequence[int] = ()
    beside: Sequence[Sequence[int]] = ()
    seen: list[Pattern] = field(default_factory=list)
    _fed: int = 0
    _room: int = 0
    _begun: bool = False
    _passed: PassedOn | None = None
    _logits: dict[bool, Logits] = field(default_factory=dict)
    _device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def again(
        self, capacity: int, source: Sequence[int], beside: Sequence[Sequence[int]] = ()
    ) -> Calls:
        """The same way from the beginning, with another text."""
        return Calls(self.model, self.way, capacity, self.shape, source, beside)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed what was not fed yet; logits of the last token, [vocab].

        Args:
            tokens: All of them so far.

        Raises:
            NoLogitsError, NoCacheError: What came back is not what the way needs.
        """
        first = self._fed + 1 if self.way.singly else len(tokens)
        try:
            for end in range(first, len(tokens)):
                self._call(tokens[:end])
            return last_row(*self._call(tokens))
        except Exception as error:
            error.add_note(_lengths(len(tokens), self._fed))
            raise

    def rows(self, tokens: Sequence[int]) -> Tensor:
        """As `step`; the logits of every row that a token has, [rows, vocab]."""
        return all_rows(*self._call(tokens))[-len(tokens) :]

    @property
    def fed(self) -> int:
        """How many tokens went in so far, in calls that went well."""
        return self._fed

    @property
    def comes_back(self) -> str:
        """Where the cache is found after a call, for people; empty before the first."""
        return "" if self._passed is None else self._passed.comes_back

    @property
    def kept(self) -> list[Tensor]:
        """The tensors of the cache that is passed on, as they are now."""
        return [] if self._passed is None else self._passed.tensors

    def _call(self, tokens: Sequence[int]) -> tuple[object, Logits]:
        if not self._begun:
            self._begin()
        before = self._fed if self.way.caches else 0
        given = list(tokens if self.way.again else tokens[before:])
        new = len(tokens) - before
        first, named = self._arguments(given, before, new)
        passed = self._passed
        stood = None if passed is None else passed.stand()
        with torch.no_grad():
            result = self.model(*first, **named)
        where = self._where(result, len(given), new)
        if passed is not None and stood is not None:
            passed.over(stood, result, where, new, first=not self._fed)
        self._fed = len(tokens)
        return result, where

    def _begin(self) -> None:
        self._begun = True
        self._device = device_of(self.model)
        for one in self.way.first:
            self._made(one)
        if any(one.padded for one in self.way.given):
            self._room = room_inside(self.model) or self.capacity
        if (cache := self.way.cache) is not None:
            caches = [self._made(cache.begin) for _ in cache.names]
            if any(isinstance(one, type(self.model)) for one in caches):
                raise CannotBeginError(f"{cache.begin.said}: the model came back, no cache")
            self._passed = PassedOn(cache, caches)

    def _made(self, begin: Begin) -> object:
        try:
            with torch.no_grad():
                return begin.make(self.model, Room(self.capacity, 1 + len(self.beside)))
        except Exception as error:
            raise CannotBeginError(f"{begin.said}: {type(error).__name__}: {error}") from error

    def _arguments(
        self, given: Sequence[int], before: int, new: int
    ) -> tuple[list[object], dict[str, object]]:
        """By place what must be or comes first, by name the rest."""
        values: dict[str, object] = {}
        parameters = self.way.signature.parameters
        ids = self.way.signature.ids
        if ids is not None:
            from_there = slice(before + new - len(given), before + new)
            rows = [given, *(text[from_there] for text in self.beside)]
            values[ids.name] = self.way.batch(rows, self._device)
        for parameter in self.way.signature.of("source"):
            rows = [self.source] * (1 + len(self.beside))
            values[parameter.name] = self.way.batch(rows, self._device)
        if self._passed is not None:
            values.update(zip(self._passed.how.names, self._passed.caches, strict=True))
        for one in self.way.given:
            span = (0, len(self.source)) if one.of_source else (before, new)
            value = one.form(*span, self._device)
            if one.padded and isinstance(value, Tensor):
                value = functional.pad(value, (0, self._room - value.shape[-1]))
            values[one.name] = _for_each(value, 1 + len(self.beside), one)
        if len(self.seen) < _COMPARED:
            self.seen.append(pattern(self.way.signature, values))
        first: list[object] = []
        for place, parameter in enumerate(parameters):
            leads = parameter.role in ("ids", "source") and len(first) == place
            if not (parameter.positional or leads) or parameter.name not in values:
                break
            first.append(values.pop(parameter.name))
        return first, values

    def _where(self, result: object, given: int, new: int) -> Logits:
        """Where the logits are: looked for once in a prefill and once in a decode step."""
        kind = given == 1
        known = self._logits.get(kind)
        if known is not None and kind and isinstance(part_of(result, known.path), Tensor):
            return known
        where = self._logits_of(result, given)
        again = self.way.again and self._fed and where.rows == given > new and not self.beside
        if again and not self.way.inside:  # one inside may compute its newest row alone
            raise NoCacheError("fed all tokens, it computed all of them again")
        self._logits[kind] = where
        return where

    def _logits_of(self, result: object, given: int) -> Logits:
        rows, shape = 1 + len(self.beside), (self.shape.vocab_sizes, self.shape.width)
        # what is read beside a text may stand before it
        ahead = any(one.beside for one in self.way.signature.parameters)
        try:
            return find_logits(result, given * rows, *shape, ahead=ahead)
        except NoLogitsError:
            if rows == 1:
                raise
            return find_logits(result, rows, *shape)  # of the last token of each


def _for_each(value: object, sequences: int, one: Argument) -> object:
    """What one sequence is given, for each; one new row of a mask is no batch."""
    if not isinstance(value, Tensor) or not value.dim() or len(value) != 1 or "[new" in one.said:
        return value
    if value.dim() == 1 and not one.said.startswith(LENGTHS):
        return value
    return value.repeat(sequences, *[1] * (value.dim() - 1))


def _lengths(given: int, before: int) -> str:
    """What is known of lengths where a call raised: models have a longest one."""
    if before:
        return f"{before} tokens went well, {given} did not; -n asks for fewer"
    return f"it was given {given} tokens; a shorter prompt may do"
