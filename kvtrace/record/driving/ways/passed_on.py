"""Caches that are passed from call to call: what they are, and where they come back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from kvtrace.errors import ModelError
from kvtrace.record.driving.ways.outputs import Logits, Path, find_caches, part_of, spelled
from kvtrace.record.driving.ways.way import Passed

_DEEP = 4
"""How far into a cache its tensors are looked for."""
_OFFSET = re.compile(
    r"_?(\w*offset|(cur|curr|current|start|seq|cache)?_?pos(ition)?|(seen|past|cur|current)_\w+"
    r"|(seq_?)?len(gth)?|size|step|n_past|t)"
)


class NoCacheError(ModelError):
    """The way has a cache, and none was kept; the message says how that showed."""


class Standing(NamedTuple):
    """How caches stand before a call.

    Attributes:
        offsets: Of each cache, numbers that say how many tokens it has seen, by their names.
        tensors: What they hold, and how often each of them was written to.
    """

    offsets: tuple[dict[str, int], ...]
    tensors: tuple[tuple[Tensor, int], ...]


@dataclass(slots=True)
class PassedOn:
    """The caches of one run.

    Attributes:
        how: They are passed.
        caches: As the next call is given them.
    """

    how: Passed
    caches: list[object]
    _began_empty: bool = False
    _back: tuple[Path, ...] | None = None

    def __post_init__(self) -> None:
        self._began_empty = all(map(is_empty, self.caches))

    @property
    def comes_back(self) -> str:
        """Where the cache is found after a call, for people; empty before the first."""
        if self._back is None:
            return ""
        return " and ".join(map(spelled, self._back)) if self._back else "filled in place"

    @property
    def tensors(self) -> list[Tensor]:
        """What they hold, as it is now."""
        return [one for cache in self.caches for one in _tensors_in(cache, _DEEP)]

    def stand(self) -> Standing:
        """How they stand before a call."""
        return Standing(tuple(map(_offsets, self.caches)), _versions(self.tensors))

    def over(
        self, stood: Standing, result: object, where: Logits, new: int, *, first: bool
    ) -> None:
        """A call is over: take those for the next one.

        Args:
            stood: As they did before it.
            result: What came back.
            where: The logits are in it.
            new: Tokens that went in.
            first: Nothing had gone in before.

        Raises:
            NoCacheError: None was kept.
        """
        self._keep(stood, result, where, first=first)
        if self.how.moved:
            self._move(stood, new)

    def _keep(self, stood: Standing, result: object, where: Logits, *, first: bool) -> None:
        """The cache for the next call: what came back, or what was passed, where that was filled.

        A call for a prompt may make it and return it, and calls after that fill it in place.
        """
        if self._back is None:
            self._back = self._places(result, where, self.how.pick)
        if self._back:
            kept = [None if path == where.path else part_of(result, path) for path in self._back]
            if not any(one is None for one in kept):
                self.caches = kept
            elif first or self._stand_still(stood):
                raise NoCacheError(f"no cache came back at {spelled(self._back[0])}")
        elif all(is_empty(one) for one in self.caches):
            raise NoCacheError(
                "no cache came back" if self.caches[0] is None else "the cache stayed empty"
            )

    def _stand_still(self, stood: Standing) -> bool:
        """Whether they are the same tensors as before the call, and none was written to."""
        before, now = stood.tensors, _versions(self.tensors)
        return len(before) == len(now) and all(
            one is other and times == then
            for (one, times), (other, then) in zip(before, now, strict=True)
        )

    def _move(self, stood: Standing, new: int) -> None:
        """Offsets of the caches that the model leaves alone are the caller's to move on."""
        for cache, before in zip(self.caches, stood.offsets, strict=True):
            still = [name for name, value in before.items() if getattr(cache, name) == value]
            if not still:
                raise NoCacheError("the cache has no offset that is left to the caller")
            for name in still:
                setattr(cache, name, before[name] + new)

    def _places(self, result: object, where: Logits, pick: int) -> tuple[Path, ...]:
        """Where the caches come back; nowhere where they are filled in place."""
        count = len(self.caches)
        found = find_caches(result, where)
        same = any(part_of(result, path) is one for path in found for one in self.caches)
        if count > 1:
            ordered = found if found and isinstance(found[0][0], str) else found[::-1]
            options = [tuple(ordered[:count])] if len(ordered) >= count else []
        else:
            options = [] if same else [(path,) for path in found]
        filled = not all(map(is_empty, self.caches))
        in_place = same or not options or (self._began_empty and filled)
        options = [(), *options] if in_place else [*options, ()]
        if pick >= len(options):
            raise NoCacheError("no other cache came back")
        return options[pick]


def _offsets(cache: object) -> dict[str, int]:
    """Numbers of a cache object that say how many tokens it has seen, by their names."""
    held = getattr(cache, "__dict__", {})
    return {
        name: value
        for name, value in held.items()
        if type(value) is int and _OFFSET.fullmatch(name.lower())
    }


def _tensors_in(value: object, deep: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif deep:
        named = value if isinstance(value, dict) else getattr(value, "__dict__", {})
        for one in value if isinstance(value, list | tuple) else list(named.values()):
            yield from _tensors_in(one, deep - 1)


def _versions(tensors: list[Tensor]) -> tuple[tuple[Tensor, int], ...]:
    """The tensors that stand there, and how often each of them was written to."""
    return tuple((one, 0 if one.is_inference() else one._version) for one in tensors)


def is_empty(cache: object) -> bool:
    """Whether a cache holds nothing: None, or containers of nothing but None."""
    if cache is None:
        return True
    if isinstance(cache, dict):
        return all(is_empty(one) for one in cache.values())
    if isinstance(cache, list | tuple):
        return all(is_empty(one) for one in cache)
    return False
