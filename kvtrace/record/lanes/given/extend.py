"""The arguments of a model's first call, made to fit a whole token stream.

Two ways. *Bare*: the tokens, and of the other arguments only what has nothing to do with a cache,
with positions or with a mask. *Replayed*: all of them, extended by rule: positions go on counting,
a causal mask grows, caches are as they were before the call. What no rule covers is refused.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvtrace.record.capture.tokens.inputs import is_source
from kvtrace.record.driving.ways.roles import CACHE_FLAG
from kvtrace.record.lanes.given.parts import flat, named, parts_of, with_parts
from kvtrace.record.lanes.given.seen import Made, Seen, grown, seen_in

_CACHE = re.compile(r"past|cache|kv|present|mems|memory|state", re.IGNORECASE)
_POSITION = re.compile(r"pos|offset|start|cur_len|seq_?len|cache_len|step", re.IGNORECASE)
_MASK = re.compile(r"mask|bias", re.IGNORECASE)
_COUNT = re.compile(r"len|total|count|num_?tok|n_?tok", re.IGNORECASE)
_FLAG = re.compile(r"^(use|return|output|with)_?(kv_?)?(cach|past|present)", re.IGNORECASE)
_TRAINING = re.compile(r"^(targets?|labels?|y)$")


class CannotExtendError(Exception):
    """No rule covers an argument; the message says which."""


@dataclass(frozen=True, slots=True)
class FirstCall:
    """What a model was called with first.

    Attributes:
        ids: Name of the argument that held the token ids.
        new: Tokens in it, per sequence.
        shape: Of the ids as they were given: (), (new,), (sequences, new) or (new, sequences).
        arguments: All of them, by name.
        parameters: What `forward` takes, by name.
        turned: The ids of a longer text are [new, sequences], as a single one does not tell.
        tables: Masks of one number are tables of queries and keys, as one token does not tell.
        more: Rows that were made of it beyond its ids: of an image, say.
        rows: Names of the arguments that held rows in place of ids; the first is `ids`.
        written: Arguments that the call itself wrote to, as to a cache.
        paths: That it is made again for.
    """

    ids: str
    new: int
    shape: tuple[int, ...]
    arguments: Mapping[str, object]
    parameters: Mapping[str, inspect.Parameter]
    turned: bool = False
    tables: bool = False
    more: int = 0
    rows: tuple[str, ...] = ()
    written: frozenset[str] = frozenset()
    paths: tuple[Made, ...] = ()

    @property
    def layouts(self) -> tuple[FirstCall, ...]:
        """This call, in each layout that its ids and its masks may have had."""
        single = self.shape == (1, 1)
        ids = (self, replace(self, turned=True)) if single else (self,)
        masks = any(self._single(name, value) for name, value in self.arguments.items())
        return (*ids, *(replace(one, tables=True) for one in ids)) if masks else ids

    @property
    def masked(self) -> bool:
        """Whether it was given a mask, whatever that hides."""
        given = (value for name, value in flat(self.arguments) if _MASK.search(name))
        return any(isinstance(value, Tensor) for value in given)

    def _single(self, name: str, value: object) -> bool:
        """Whether it is a mask of one token, for each sequence and head at most."""
        if self.new > 1 or not isinstance(value, Tensor) or not _MASK.search(name):
            return False
        return value.dim() >= 2 and tuple(value.shape[-2:]) == (1, 1)

    def given(self, tokens: Tensor, rows: Sequence[int]) -> Tensor:
        """Ids for whole paths: where its own made more rows than they are, those and what follows.

        Args:
            tokens: [paths, rows]; negative where no id stands for a row.
            rows: Sequence of the first call that each path goes on with.
        """
        ids = self.arguments[self.ids]
        if not self.more or not isinstance(ids, Tensor) or bool((tokens[:, 0] >= 0).any()):
            return tokens
        return torch.cat((ids[list(rows)], tokens[:, self.new + self.more :]), 1)

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

    def bare(self, tokens: Tensor) -> dict[str, object]:
        """Arguments of a call with the tokens alone.

        Args:
            tokens: [sequences, rows].

        Raises:
            CannotExtendError: Something else is needed.
        """
        out: dict[str, object] = {self.ids: self._shaped(tokens)}
        for name, value in self.arguments.items():
            if name in (self.ids, *self.rows) or _TRAINING.match(name):
                continue
            if is_source(name, value):
                out[name] = value
                continue
            cached = _CACHE.search(name) or _POSITION.search(name) or _MASK.search(name)
            if _FLAG.match(name):
                out[name] = False
            elif cached or self._per_token(value) or (name in self.written and self.optional(name)):
                if not self.optional(name):
                    out[name] = self._counted(name, value, tokens.shape[1])
                    given = value is not None and out[name] is value
                    if given and not self._is_read_only(name, value):
                        raise CannotExtendError(f"`{name}` can't be left out")
            else:
                out[name] = self._counted(name, value, tokens.shape[1])
        for name in self.parameters:
            if _FLAG.match(name):
                out[name] = False
        return out

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
        table = _POSITION.search(name) or _MASK.search(name)
        return rows and not table and name not in self.written

    def replayed(self, tokens: Tensor) -> dict[str, object]:
        """The first call's arguments, for more tokens.

        Args:
            tokens: [sequences, rows].

        Raises:
            CannotExtendError: No rule covers one of them.
        """
        rows = tokens.shape[1]
        out: dict[str, object] = {self.ids: self._shaped(tokens)}
        for name, value in self.arguments.items():
            if name not in (self.ids, *self.rows) and not _TRAINING.match(name):
                out[name] = self._extended(name, value, rows)
        return out

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
        if isinstance(self.arguments[self.ids], list):
            return [int(token) for token in tokens[0]]
        if len(self.shape) == 1:
            return tokens[0]
        kept = self.shape[1] == self.new and not self.turned
        return tokens if kept else tokens.transpose(0, 1)

    def _per_token(self, value: object) -> bool:
        held = (one for _, one in flat({"": value}) if isinstance(one, Tensor))
        return self.new > 1 and any(self.new in one.shape for one in held)

    def _extended(self, name: str, value: object, rows: int) -> object:
        counted = self._counted(name, value, rows)
        if counted is not value or isinstance(value, int):
            return counted
        cache = _CACHE.search(name) and not _POSITION.search(name)
        if cache or (isinstance(value, Tensor) and value.dim() == 0):
            return value
        if not isinstance(value, Tensor):
            # what globals tell has no parameters, and much that is no description of tokens
            given = self.parameters and name not in self.written
            return self._held(name, value, rows) if given else value
        if is_source(name, value) and not (_MASK.search(name) and seen_in(value, self.new)):
            return value
        return self._longer(name, value, rows)

    def _longer(self, name: str, value: Tensor, rows: int) -> Tensor:
        """A tensor over tokens, over more of them."""
        if self.tables and self._single(name, value):
            return _causal(value, rows)
        if self._masks_padding(name, value) or self._masks_keys(name, value):
            return _longer(value, rows, 0)
        whole = not value.is_floating_point() and value.dtype != torch.bool
        whole = whole and not (_MASK.search(name) and seen_in(value, self.new))
        return (self._whole if whole else self._table)(name, value, rows)

    def _held(self, name: str, value: object, rows: int, deep: int = 3) -> object:
        """What is made of other things, with those that tell of tokens extended."""
        changed: dict[object, object] = {}
        for part, one in parts_of(value).items() if deep else ():
            here = named(name, part)
            tells = _MASK.search(here) or _POSITION.search(here)
            if not isinstance(one, Tensor | int | list | tuple):
                longer = self._held(here, one, rows, deep - 1)
            elif tells or self.new > 1:
                try:
                    longer = self._extended(here, one, rows)
                except CannotExtendError:
                    if tells:
                        raise
                    continue
            else:
                continue
            if longer is not one:
                changed[part] = longer
        return with_parts(value, changed) if changed else value

    def _counted(self, name: str, value: object, rows: int) -> object:
        """A number of tokens, alone or as those of the only text: [new], or from 0 to it, [0, new].

        What is no such thing is given back.
        """
        if self.new < 2 or not (_POSITION.search(name) or _COUNT.search(name)):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return rows if value == self.new else value
        whole = isinstance(value, Tensor) and not value.is_floating_point() and value.dim() == 1
        counts = value.tolist() if isinstance(value, Tensor) and whole else value
        if not isinstance(counts, list | tuple) or list(counts) not in ([self.new], [0, self.new]):
            return value
        longer = [*counts[:-1], rows]
        return torch.tensor(longer).to(value) if isinstance(value, Tensor) else type(counts)(longer)

    @property
    def seen(self) -> Mapping[str, Sequence[Seen]]:
        """Tables of queries and keys, by the name of the argument, and what they show."""
        masks = ((name, one) for name, one in flat(self.arguments) if _MASK.search(name))
        found = ((n, seen_in(one, self.new)) for n, one in masks if isinstance(one, Tensor))
        return {name: seen for name, seen in found if seen}

    @property
    def tables_hide(self) -> bool:
        """Whether one of them hides padding."""
        return any(one.padding for seen in self.seen.values() for one in seen)

    @property
    def padding(self) -> str | None:
        """The argument that hides padding at the left; None: none does."""
        masks = (name for name, one in self.arguments.items() if self._masks_padding(name, one))
        return next(masks, None)

    def _masks_padding(self, name: str, value: object) -> bool:
        """Whether it hides some of the first tokens, or none, and shows the others."""
        if not isinstance(value, Tensor) or not _MASK.search(name) or not 0 < value.dim() <= 2:
            return False
        whole = not value.is_floating_point() and value.dtype != torch.bool
        if whole and bool((value > 1).any()):
            return False  # it counts
        shown = value != 0
        later = bool((shown[..., 1:] >= shown[..., :-1]).all())
        return value.shape[-1] == self.new and later and bool(shown[..., -1].all())

    def _masks_keys(self, name: str, value: Tensor) -> bool:
        """Whether it says of each key whether queries see it, all of them, as [.., 1, new]."""
        keys = value.dim() > 2 and tuple(value.shape[-2:]) == (1, self.new)
        return keys and _MASK.search(name) is not None

    def _whole(self, name: str, value: Tensor, rows: int) -> Tensor:
        """Whole numbers: positions that go on counting, or a mask of ones."""
        last = value.shape[-1]
        if last != self.new and not (last == 1 and self.new == 1):
            return value
        steps = value[..., 1:] - value[..., :-1]
        if bool((steps == 1).all()):
            return value[..., :1] + torch.arange(rows, dtype=value.dtype, device=value.device)
        if steps.numel() and bool((steps == 0).all()):
            return value[..., :1].expand(*value.shape[:-1], rows).clone()
        # padding at the left stands still before a text begins to count
        late = (steps[..., 1:] >= steps[..., :-1]) & (steps[..., 1:] <= 1)
        if steps.shape[-1] > 1 and bool(late.all()) and bool((steps[..., -1] == 1).all()):
            return _longer(value, rows, 1)
        raise CannotExtendError(f"`{name}` neither counts nor stays the same")

    def _table(self, name: str, value: Tensor, rows: int) -> Tensor:
        """A mask over queries and keys, or rows of a longer table."""
        seen = seen_in(value, self.new)
        if seen is not None:
            if value.shape[-1] < rows and value.shape[-1] != self.new:
                raise CannotExtendError(f"`{name}` has {value.shape[-1]} columns for {rows} tokens")
            mask = grown(value, seen, rows, self.paths, self.most)
            if mask is None:
                raise CannotExtendError(f"`{name}` hides the same padding of all sequences")
            return mask
        axes = [axis for axis, size in enumerate(value.shape) if size == self.new]
        if not axes:
            return value
        whole = value._base
        axis = axes[0]
        if whole is None or whole.dim() != value.dim() or not _is_cut_from(value, whole, axis):
            raise CannotExtendError(f"`{name}` {list(value.shape)} belongs to its tokens")
        first = (value.storage_offset() - whole.storage_offset()) // max(1, whole.stride(axis))
        if first + rows > whole.shape[axis]:
            raise CannotExtendError(f"`{name}` is cut from a table too short for {rows} tokens")
        return whole.narrow(axis, first, rows)


def _causal(value: Tensor, rows: int) -> Tensor:
    """A table of queries and keys that shows what a single token was shown: itself.

    Args:
        value: It, of one query and one key.
        rows: Tokens of the whole path.
    """
    if value.is_floating_point():
        hidden = torch.where(value == 0, torch.full_like(value, -torch.inf), 0.0)
    else:
        hidden = (value == 0).to(value.dtype)
    later = torch.ones(rows, rows, dtype=torch.bool, device=value.device).triu(1)
    return torch.where(later, hidden, value)


def _longer(value: Tensor, rows: int, step: int) -> Tensor:
    """Numbers that go on from the last one, [.., rows]."""
    if rows <= value.shape[-1]:
        return value[..., :rows]
    more = torch.arange(1, rows - value.shape[-1] + 1, device=value.device) * step
    return torch.cat((value, value[..., -1:] + more.to(value.dtype)), -1)


def _is_cut_from(value: Tensor, whole: Tensor, axis: int) -> bool:
    """Whether it is a stretch of a longer table, along one axis alone."""
    return value.stride() == whole.stride() and all(
        one == other
        for place, (one, other) in enumerate(zip(value.shape, whole.shape, strict=True))
        if place != axis
    )


def positional(
    parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments as a call takes them: those without a usable name by place.

    Args:
        parameters: What is called takes.
        arguments: By name.
    """
    places: list[Any] = []
    named = dict(arguments)
    for name, one in parameters.items():
        by_place = one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL)
        if not by_place or name not in named:
            break
        places.append(named.pop(name))
    return places, named
