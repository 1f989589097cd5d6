"""What stands in a function's place while watching: called it is ours, looked at it is theirs.

Programs read the functions that they call: signatures, sources, code, defaults, names; frameworks
choose by them what they pass. Whatever is read of a stand-in, or set on it, is read of the original
and set there. It is a call in C with no frame of its own, for some run many times a step.
"""

from __future__ import annotations

import functools
from types import FunctionType, MethodType
from typing import Any

_OURS = frozenset(("__call__", "__get__", "__reduce_ex__", "__hash__", "__eq__"))
_PARTIAL: dict[str, Any] = {"args": (), "keywords": {}}
"""What is read of a `functools.partial`, by those who ask whether it is one."""


class StandIn(functools.partial[Any]):
    """Calls what it was made of; is, to whoever looks at it, what it stands for."""

    def __getattribute__(self, name: str) -> Any:
        """Of the original."""
        if name in _OURS:
            return super().__getattribute__(name)
        original = _original(self)
        try:
            return getattr(original, name)
        except AttributeError:
            if name == "func":
                return original
            if name in _PARTIAL:
                return _PARTIAL[name]
            raise

    def __setattr__(self, name: str, value: object) -> None:
        """On the original, where it stays."""
        setattr(_original(self), name, value)

    def __delattr__(self, name: str) -> None:
        """From the original."""
        delattr(_original(self), name)

    def __dir__(self) -> list[str]:
        """Of the original."""
        return dir(_original(self))

    def __repr__(self) -> str:
        """Of the original."""
        return repr(_original(self))

    def __eq__(self, other: object) -> bool:
        """Equal to what it stands for, and to all else that stands for that."""
        return bool(as_written(self) == as_written(other))

    def __hash__(self) -> int:
        """As what it stands for: tables of functions find both."""
        return hash(_original(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A function is pickled by its name, and copied by being itself."""
        original = as_written(self)
        if isinstance(original, FunctionType):
            return original.__qualname__
        return original.__reduce_ex__(protocol)


class MethodStandIn(StandIn):
    """Stands for what binds to the object it is asked of, as functions do and partials do not."""

    def __get__(self, holder: object, kind: type | None = None) -> Any:
        """Bind it."""
        return self if holder is None else MethodType(self, holder)


_HELD = "original"


def _original(one: StandIn) -> Any:
    return functools.partial.__getattribute__(one, "__dict__")[_HELD]


def in_place_of(original: Any, made: Any) -> Any:
    """A function of ours that looks like the one whose place it takes; no function, as it is."""
    if isinstance(made, staticmethod):
        return staticmethod(in_place_of(original, made.__func__))
    if type(made) is not FunctionType:
        return made
    binds = hasattr(type(as_written(original)), "__get__")
    one = MethodStandIn(made) if binds else StandIn(made)
    functools.partial.__setattr__(one, _HELD, original)
    return one


def as_written(function: Any) -> Any:
    """The function that others of ours stand for, bound as they are; anything else as it is."""
    if type(function) is MethodType and isinstance(function.__func__, StandIn):
        return MethodType(as_written(function.__func__), function.__self__)
    while isinstance(function, StandIn):
        function = _original(function)
    return function
