"""The arguments of a model's first call, made to fit a whole token stream.

Two ways. *Bare*: the tokens, and of the other arguments only what has nothing to do with a cache,
with positions or with a mask. *Replayed*: all of them, each extended by rule (`extend.py`), caches
as they were before the call.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.capture.tokens.inputs import is_source, places_of
from kvtrace.record.driving.ways.masks import Choice, hiding_later
from kvtrace.record.driving.ways.roles import CACHE_FLAG
from kvtrace.record.lanes.given.extend import (
    CACHE,
    MASK,
    POSITION,
    CannotExtendError,
    Extension,
    hides_padding,
    is_per_token,
    is_single,
)
from kvtrace.record.lanes.given.seen import Made, Seen, seen_in
from kvtrace.record.parts import flat, part_in, with_parts

_FLAG = re.compile(r"^(use|return|output|with)_?(kv_?)?(cach|past|present)", re.IGNORECASE)
_HAVE_NAMES = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_TRAINING = re.compile(r"^(targets?|labels?|y)$")


class FirstCall(Struct, frozen=True):
    """What a model was called with first.

    Attributes:
        ids: Name of the argument that held the token ids; `batch.tokens`: within an argument.
        new: Tokens in it, per sequence.
        shape: Of the ids as they were given: (), (new,), (sequences, new) or (new, sequences).
        arguments: All of them, by name.
        parameters: What `forward` takes, by name.
        placed: Names of the arguments that were given by place: hooks see them there.
        turned: The ids of a longer text are [new, sequences], as a single one does not tell.
        tables: Masks of one number are tables of queries and keys, as one token does not tell.
        rows: Names of the arguments that held rows in place of ids; the first is `ids`.
        written: Arguments that the call itself wrote to, as to a cache.
        paths: That it is made again for.
        hidden: What masks are given besides, to hide later tokens.
    """

    ids: str
    new: int
    shape: tuple[int, ...]
    arguments: Mapping[str, object]
    parameters: Mapping[str, inspect.Parameter]
    placed: tuple[str, ...] = ()
    turned: bool = False
    tables: bool = False
    rows: tuple[str, ...] = ()
    written: frozenset[str] = frozenset()
    paths: tuple[Made, ...] = ()
    hidden: Choice = ()

    @property
    def layouts(self) -> tuple[FirstCall, ...]:
        """This call, in each layout that its ids and its masks may have had."""
        single = self.shape == (1, 1)
        ids = (self, replace(self, turned=True)) if single else (self,)
        masks = any(is_single(name, value, self.new) for name, value in self.arguments.items())
        known = (*ids, *(replace(one, tables=True) for one in ids)) if masks else ids
        # one token needs no mask, and does not tell how several want theirs
        lacks = hiding_later(self.parameters) if self.new == 1 and not self.masked else []
        return (*known, *(replace(one, hidden=hides) for one in ids for hides in lacks))

    @property
    def held(self) -> object:
        """The token ids as they were given."""
        return part_in(self.arguments, self.ids)

    @property
    def _alone(self) -> str:
        """The argument that takes nothing but the token ids.

        Raises:
            CannotExtendError: There is none.
        """
        if "." in self.ids:
            raise CannotExtendError(f"`{self.ids}` is not given alone")
        return self.ids

    @property
    def masked(self) -> bool:
        """Whether it was given a mask, whatever that hides."""
        given = (value for name, value in flat(self.arguments) if MASK.search(name))
        return any(isinstance(value, Tensor) for value in given)

    @property
    def takes_mask(self) -> bool:
        """Whether it may be given one."""
        return any(map(MASK.search, self.parameters))

    @staticmethod
    def given(tokens: Tensor, led: object) -> Tensor:
        """Ids for whole paths: those they begin with behind other rows, and what follows.

        Args:
            tokens: [paths, rows]; negative where no id stands for a row.
            led: Ids that the texts begin with, [paths, ids]; no tensor: they made no more.
        """
        if not isinstance(led, Tensor):
            return tokens
        rows = int((tokens[0] < 0).sum())
        return torch.cat((led.to(tokens), tokens[:, rows:]), 1)

    def filled(self, rows: Tensor) -> dict[str, object]:
        """The arguments that hold rows in place of ids, with those of whole paths.

        Args:
            rows: [paths, rows, width].
        """
        return dict.fromkeys(self.rows, self._shaped(rows))

    def optional(self, name: str) -> bool:
        """Whether an argument may be left out."""
        known = self.parameters.get(name)
        return known is None or known.default is not inspect.Parameter.empty

    def _unknown(self, name: str) -> bool:
        """Whether it does not take an argument: another method of the model was given that."""
        known = self.parameters.values()
        takes_any = not known or any(one.kind is one.VAR_KEYWORD for one in known)
        return not takes_any and name.partition("[")[0] not in self.parameters

    def bare(self, tokens: Tensor) -> dict[str, object]:
        """Arguments of a call with the tokens alone.

        Args:
            tokens: [sequences, rows].

        Raises:
            CannotExtendError: Something else is needed.
        """
        extension = self._extension(tokens)
        out: dict[str, object] = {self._alone: self._shaped(tokens)}
        for name, value in self.arguments.items():
            if name in (self.ids, *self.rows) or _TRAINING.match(name) or self._unknown(name):
                continue
            if is_source(name, value):
                out[name] = value
                continue
            cached = any(kind.search(name) for kind in (CACHE, POSITION, MASK))
            cached = cached or (name in self.written and self.optional(name))
            if _FLAG.match(name):
                out[name] = False
            elif cached or is_per_token(value, self.new):
                if not self.optional(name):
                    out[name] = extension.counted(name, value)
                    given = value is not None and out[name] is value
                    if given and not self._is_read_only(name, value):
                        raise CannotExtendError(f"`{name}` can't be left out")
            else:
                out[name] = extension.counted(name, value)
        for name in self.parameters:
            if _FLAG.match(name):
                out[name] = False
        return out | self._hiding(tokens)

    def _hiding(self, tokens: Tensor) -> dict[str, object]:
        """The masks that hide later tokens, and those of what an encoder reads, which hide none."""
        source = next((one for name, one in self.arguments.items() if is_source(name, one)), tokens)
        assert isinstance(source, Tensor)
        rows = {True: source.shape[-1], False: tokens.shape[1]}
        return {one.name: one.form(0, rows[one.of_source], tokens.device) for one in self.hidden}

    @property
    def switches(self) -> dict[str, object]:
        """Flags that turned a cache on, as `decode=True` does, with what they are by default."""
        return {
            name: known.default
            for name, known in self.parameters.items()
            if self.arguments.get(name) is True
            and known.default in (False, None)
            and CACHE_FLAG.fullmatch(name.lower())
        }

    def unswitched(self, tokens: Tensor) -> dict[str, object]:
        """Arguments of a call with the tokens alone, and with no cache turned on.

        Args:
            tokens: [sequences, rows].

        Raises:
            CannotExtendError: Something else is needed.
        """
        return self.bare(tokens) | self.switches

    def _is_read_only(self, name: str, value: object) -> bool:
        """Whether it is rows that the call leaves alone: an encoder's, which people call memory."""
        rows = isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 3
        table = POSITION.search(name) or MASK.search(name)
        return rows and not table and name not in self.written

    def replayed(self, tokens: Tensor) -> dict[str, object]:
        """The first call's arguments, for more tokens.

        Args:
            tokens: [sequences, rows].

        Raises:
            CannotExtendError: No rule covers one of them.
        """
        extension, ids = self._extension(tokens), self._shaped(tokens)
        owner, _, part = self.ids.partition(".")
        out: dict[str, object] = {} if part else {owner: ids}
        for name, value in self.arguments.items():
            if name not in (self.ids, *self.rows) and not _TRAINING.match(name):
                # what globals tell has no parameters, and much that is no description of tokens
                opened = bool(self.parameters) and name not in self.written
                out[name] = extension.extended(name, value, opened=opened)
        if part:
            out[owner] = with_parts(out[owner], {part: ids})
        return out

    def longer(self, name: str, tokens: Tensor) -> object:
        """One of its arguments, for more tokens.

        Raises:
            CannotExtendError: No rule covers it.
        """
        return self._extension(tokens).extended(name, self.arguments[name], opened=False)

    def _extension(self, tokens: Tensor) -> Extension:
        beside = frozenset(self._beside())
        return Extension(self.new, tokens.shape[1], self.most, self.tables, self.paths, beside)

    def _beside(self) -> Iterator[int]:
        """Lengths of what else it is given to attend to, [sequences, rows, width] or turned."""
        for name, one in self.arguments.items():
            if not isinstance(one, Tensor) or one.dim() != 3 or name in (self.ids, *self.rows):
                continue
            if one.is_floating_point() and (is_source(name, one) or self._is_read_only(name, one)):
                yield one.shape[0 if one.shape[1] == self.most != one.shape[0] else 1]

    @property
    def most(self) -> int:
        """Sequences that it takes at once."""
        if len(self.shape) < 2:
            return 1
        return self.shape[1] if self.shape[0] == self.new != self.shape[1] else self.shape[0]

    def _shaped(self, tokens: Tensor) -> Tensor | list[int]:
        """Ids in the form that it was given them.

        Raises:
            CannotExtendError: It was given one token.
        """
        if not self.shape:
            raise CannotExtendError("it takes one token at a time")
        if isinstance(self.held, list):
            return [int(token) for token in tokens[0]]
        if len(self.shape) == 1:
            return tokens[0]
        kept = self.shape[1] == self.new and not self.turned
        return tokens if kept else tokens.transpose(0, 1)

    @property
    def seen(self) -> Mapping[str, Sequence[Seen]]:
        """Tables of queries and keys, by the name of the argument, and what they show."""
        masks = ((name, one) for name, one in flat(self.arguments) if MASK.search(name))
        found = ((n, seen_in(one, self.new)) for n, one in masks if isinstance(one, Tensor))
        return {name: seen for name, seen in found if seen}

    @property
    def tables_hide(self) -> bool:
        """Whether one of them hides padding."""
        return any(one.padding for seen in self.seen.values() for one in seen)

    @property
    def padding(self) -> str | None:
        """The argument that hides padding at the left; None: none does."""
        masks = (name for name, one in self.arguments.items() if hides_padding(name, one, self.new))
        return next(masks, None)


def positional(
    parameters: Mapping[str, inspect.Parameter],
    arguments: Mapping[str, Any],
    placed: Sequence[str] = (),
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments as a call takes them: by place those that were so, or have no usable name.

    Args:
        parameters: What is called takes.
        arguments: By name.
        placed: Names of those that were given by place.
    """
    names = places_of(parameters)
    nameless = [
        place
        for place, name in enumerate(names)
        if name in arguments
        and (name not in parameters or parameters[name].kind not in _HAVE_NAMES)
    ]
    least = nameless[-1] + 1 if nameless else 0
    places: list[Any] = []
    named = dict(arguments)
    for place, name in enumerate(names):
        if name not in named or not (place < least or name in placed):
            break
        places.append(named.pop(name))
    return places, named
