"""One argument of a model's first call, made to fit a whole token stream.

By rule: positions go on counting, a causal mask grows, lengths are the new ones, caches stay as
they are. What no rule covers is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from msgspec import Struct
from torch import Tensor

from kvtrace.record.capture.tokens.inputs import is_source
from kvtrace.record.lanes.given.seen import Made, grown, seen_in
from kvtrace.record.parts import flat, named, parts_of, with_parts

CACHE = re.compile(r"past|cache|kv|present|mems|memory|state", re.IGNORECASE)
POSITION = re.compile(r"pos|offset|start|cur_len|seq_?len|cache_len|step", re.IGNORECASE)
MASK = re.compile(r"mask|bias", re.IGNORECASE)
_COUNT = re.compile(r"len|total|count|num_?tok|n_?tok", re.IGNORECASE)


class CannotExtendError(Exception):
    """No rule covers an argument; the message says which."""


class Extension(Struct, frozen=True):
    """How arguments that belong to some tokens are made to fit more of them.

    Attributes:
        new: Tokens that they belong to, per sequence.
        rows: As many as they shall fit.
        most: Sequences that the call takes at once.
        tables: Masks of one number are tables of queries and keys, as one token does not tell.
        paths: That it is made again for.
        beside: Lengths of what else is given to attend to, such as an encoder's output.
    """

    new: int
    rows: int
    most: int
    tables: bool
    paths: Sequence[Made]
    beside: frozenset[int] = frozenset()

    def extended(self, name: str, value: object, *, opened: bool) -> object:
        """An argument over all tokens.

        Args:
            name: Of it.
            value: It.
            opened: Whether what it is made of is extended as well.

        Raises:
            CannotExtendError: No rule covers it.
        """
        counted = self.counted(name, value)
        if counted is not value or isinstance(value, int):
            return counted
        cache = CACHE.search(name) and not POSITION.search(name)
        if cache or (isinstance(value, Tensor) and value.dim() == 0):
            return value
        if not isinstance(value, Tensor):
            return self._held(name, value) if opened else value
        if is_source(name, value) and not (MASK.search(name) and seen_in(value, self.new)):
            return value
        return self._longer(name, value)

    def counted(self, name: str, value: object) -> object:
        """A number of tokens, alone or as those of the only text: [new], or from 0 to it, [0, new].

        What is no such thing is given back.
        """
        if self.new < 2 or not (POSITION.search(name) or _COUNT.search(name)):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return self.rows if value == self.new else value
        whole = isinstance(value, Tensor) and not value.is_floating_point() and value.dim() == 1
        counts = value.tolist() if isinstance(value, Tensor) and whole else value
        if not isinstance(counts, list | tuple) or list(counts) not in ([self.new], [0, self.new]):
            return value
        longer = [*counts[:-1], self.rows]
        return torch.tensor(longer).to(value) if isinstance(value, Tensor) else type(counts)(longer)

    def _held(self, name: str, value: object, deep: int = 3) -> object:
        """What is made of other things, with those that tell of tokens extended."""
        changed: dict[object, object] = {}
        for part, one in parts_of(value).items() if deep else ():
            here = named(name, part)
            tells = MASK.search(here) or POSITION.search(here)
            if not isinstance(one, Tensor | int | list | tuple):
                longer = self._held(here, one, deep - 1)
            elif tells or self.new > 1:
                try:
                    longer = self.extended(here, one, opened=True)
                except CannotExtendError:
                    if tells:
                        raise
                    continue
            else:
                continue
            if longer is not one:
                changed[part] = longer
        return with_parts(value, changed) if changed else value

    def _longer(self, name: str, value: Tensor) -> Tensor:
        """A tensor over tokens, over more of them."""
        if self.tables and is_single(name, value, self.new):
            return _causal(value, self.rows)
        if hides_padding(name, value, self.new) or _masks_keys(name, value, self.new):
            return _longer(value, self.rows, 0)
        if _hides_filling(name, value, self.new) and not seen_in(value, self.new):
            more = value.new_ones(*value.shape[:-1], max(0, self.rows - self.new))
            return torch.cat((value, more), -1)[..., : self.rows]
        whole = not value.is_floating_point() and value.dtype != torch.bool
        whole = whole and not (MASK.search(name) and seen_in(value, self.new))
        return (self._whole if whole else self._table)(name, value)

    def _whole(self, name: str, value: Tensor) -> Tensor:
        """Whole numbers: positions that go on counting, or a mask of ones."""
        last, rows = value.shape[-1], self.rows
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
        if POSITION.search(name) and bool(_stands_still(steps).all()):
            return _longer(value, rows, 1)  # behind its filling a text goes on where it ended
        raise CannotExtendError(f"`{name}` neither counts nor stays the same")

    def _table(self, name: str, value: Tensor) -> Tensor:
        """A mask over queries and keys, or rows of a longer table."""
        seen, rows = seen_in(value, self.new), self.rows
        if seen is not None:
            if value.shape[-1] < rows and value.shape[-1] != self.new:
                raise CannotExtendError(f"`{name}` has {value.shape[-1]} columns for {rows} tokens")
            mask = grown(value, seen, rows, self.paths, self.most)
            if mask is None:
                raise CannotExtendError(f"`{name}` hides the same padding of all sequences")
            return mask
        if self._is_beside(name, value):
            return value if self.new == 1 else _for_each(value, rows)
        if rows == self.new and _is_table(value, rows):
            return value
        axes = [axis for axis, size in enumerate(value.shape) if size == self.new]
        if not axes or (self.new == 1 and MASK.search(name) and _is_of_another_text(value)):
            return value
        whole = value._base
        axis = axes[0]
        if whole is None or whole.dim() != value.dim() or not _is_cut_from(value, whole, axis):
            raise CannotExtendError(f"`{name}` {list(value.shape)} belongs to its tokens")
        first = (value.storage_offset() - whole.storage_offset()) // max(1, whole.stride(axis))
        if first + rows > whole.shape[axis]:
            raise CannotExtendError(f"`{name}` is cut from a table too short for {rows} tokens")
        return whole.narrow(axis, first, rows)

    def _is_beside(self, name: str, value: Tensor) -> bool:
        """Whether a mask, [.., new, keys], is of what else is attended to, the same for each query.

        Of a single first token the same may be said of its own row in a buffer of as many.
        """
        if not MASK.search(name) or value.dim() < 2 or value.shape[-1] not in self.beside:
            return False
        keys = value.shape[-1]
        if value.shape[-2] != self.new or keys == self.new or value.dim() == 2 < self.most:
            return False
        odd = _counts_one(value) if self.new == 1 else False
        return not odd and bool((value == value[..., :1, :]).all())


def _is_table(value: Tensor, rows: int) -> bool:
    """Whether it says of each pair of tokens who sees whom, and fits as many others."""
    square = tuple(value.shape[-2:]) == (rows, rows) and value.numel() == rows * rows
    return square and value.dtype == torch.bool


def is_single(name: str, value: object, new: int) -> bool:
    """Whether it is a mask of one token, for each sequence and head at most."""
    if new > 1 or not isinstance(value, Tensor) or not MASK.search(name):
        return False
    return value.dim() >= 2 and tuple(value.shape[-2:]) == (1, 1)


def is_per_token(value: object, new: int) -> bool:
    """Whether a tensor of it has an axis of tokens."""
    held = (one for _, one in flat({"": value}) if isinstance(one, Tensor))
    return new > 1 and any(new in one.shape for one in held)


def hides_padding(name: str, value: object, new: int) -> bool:
    """Whether it hides some of the first tokens, or none, and shows the others."""
    if not isinstance(value, Tensor) or not MASK.search(name) or not 0 < value.dim() <= 2:
        return False
    whole = not value.is_floating_point() and value.dtype != torch.bool
    if whole and bool((value > 1).any()):
        return False  # it counts
    shown = value != 0
    later = bool((shown[..., 1:] >= shown[..., :-1]).all())
    return value.shape[-1] == new and later and bool(shown[..., -1].all())


def _hides_filling(name: str, value: Tensor, new: int) -> bool:
    """Whether it shows each sequence's text and hides what fills it up behind, [.., new]."""
    if not MASK.search(name) or not 0 < value.dim() <= 2 or value.shape[-1] != new:
        return False
    if value.is_floating_point() or bool(((value != 0) & (value != 1)).any()):
        return False
    steps = value[..., 1:].int() - value[..., :-1].int()
    once = (steps == 1).sum(-1) + value[..., 0] == 1
    ends_once = (steps == -1).sum(-1) <= 1
    return bool((once & ends_once).all()) and bool(value.all(-1).any())


def _stands_still(steps: Tensor) -> Tensor:
    """Whether positions count, and stand still behind their text at most, of each sequence."""
    counts = (steps == 1).to(torch.int8)
    return ((steps == 0) | (steps == 1)).all(-1) & (counts[..., 1:] <= counts[..., :-1]).all(-1)


def _masks_keys(name: str, value: Tensor, new: int) -> bool:
    """Whether it says of each key whether queries see it, all of them, as [.., 1, new]."""
    keys = value.dim() > 2 and tuple(value.shape[-2:]) == (1, new)
    return keys and MASK.search(name) is not None


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


def _for_each(mask: Tensor, rows: int) -> Tensor:
    """A mask that is the same for each query, for more of them, [.., rows, keys]."""
    return mask[..., :1, :].expand(*mask.shape[:-2], rows, mask.shape[-1])


def _counts_one(mask: Tensor) -> bool:
    """Whether it shows a single key somewhere, or hides a single one."""
    counts = (mask != 0).sum(-1)
    return bool(((counts == 1) | (counts == mask.shape[-1] - 1)).any())


def _is_of_another_text(mask: Tensor) -> bool:
    """Whether a mask of a single first token, [.., 1, keys], shows and hides several keys.

    Of its own text there is one key that it may see: itself.
    """
    keys = mask.shape[-1]
    if mask.dim() < 2 or mask.shape[-2] != 1 or keys < 2:
        return False
    counts = (mask != 0).sum(-1)
    return bool(((counts > 1) & (counts < keys - 1)).any())


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
