"""Slotted dataclasses as the standard library makes them, but made in a tenth of the time.

`from kvtrace.slotted import dataclass` takes the place of `from dataclasses import dataclass`. The
standard library writes and compiles up to six functions for each class, and a screen or a recorder
loads a hundred classes before it can begin. Here one is compiled, when the first instance is made.
Does not know `order` and `kw_only`; fields without a parameter are left to `__post_init__`.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass
else:

    def dataclass(
        *, slots: bool, frozen: bool = False, eq: bool = True
    ) -> Callable[[type[Any]], type[Any]]:
        """Slots are said where the class is defined, and are always true."""
        if not slots:
            raise TypeError("this dataclass has slots; without them use the standard library's")

        def made(plain: type[Any]) -> type[Any]:
            bare = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True)
            slotted = bare(plain)
            slotted.__init__ = _first_init(slotted)
            for name, method in _methods(slotted, frozen, eq).items():
                if name not in plain.__dict__:
                    setattr(slotted, name, method)
            return slotted

        return made


def _first_init(slotted: type[Any]) -> Callable[..., None]:
    """An `__init__` that writes the real one into its place."""

    def __init__(self: object, *given: object, **named: object) -> None:  # noqa: N807
        slotted.__init__ = _written_init(slotted)
        slotted.__init__(self, *given, **named)

    return __init__


def _written_init(slotted: type[Any]) -> Callable[..., None]:
    """A parameter for each field, put into its slot."""
    names: dict[str, Any] = {"_absent": dataclasses.MISSING}
    parameters, lines = ["self"], []
    for field in dataclasses.fields(slotted):
        name = field.name
        if not field.init:
            continue
        names[f"_put_{name}"] = getattr(slotted, name).__set__
        if field.default_factory is not dataclasses.MISSING:
            names[f"_make_{name}"] = field.default_factory
            parameters.append(f"{name}=_absent")
            lines.append(f" if {name} is _absent: {name} = _make_{name}()")
        elif field.default is not dataclasses.MISSING:
            names[f"_default_{name}"] = field.default
            parameters.append(f"{name}=_default_{name}")
        else:
            parameters.append(name)
        lines.append(f" _put_{name}(self, {name})")
    if hasattr(slotted, "__post_init__"):
        lines.append(" self.__post_init__()")
    exec(f"def __init__({', '.join(parameters)}):\n" + "\n".join(lines or [" pass"]), names)
    init: Callable[..., None] = names["__init__"]
    init.__qualname__ = f"{slotted.__qualname__}.__init__"
    return init


def _methods(slotted: type[Any], frozen: bool, eq: bool) -> dict[str, Any]:
    """What the class gets beside its `__init__`."""
    methods: dict[str, Any] = {"__repr__": _repr}
    if eq:
        compared = _compared(slotted)

        def equal(self: object, other: object) -> Any:
            if type(other) is not type(self):
                return NotImplemented
            return compared(self) == compared(other)

        methods |= {"__eq__": equal, "__hash__": None}
        if frozen:
            methods["__hash__"] = lambda self: hash(compared(self))
    if frozen:
        methods |= {"__setattr__": _setattr, "__delattr__": _delattr}
        methods |= {"__getstate__": _getstate, "__setstate__": _setstate}
    return methods


def _compared(slotted: type[Any]) -> Callable[[object], tuple[object, ...]]:
    """What tells two instances apart."""
    names = [field.name for field in dataclasses.fields(slotted) if field.compare]
    if len(names) > 1:
        return attrgetter(*names)
    return lambda one: tuple(getattr(one, name) for name in names)


@recursive_repr()
def _repr(self: Any) -> str:
    shown = [field.name for field in dataclasses.fields(self) if field.repr]
    parts = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
    return f"{self.__class__.__qualname__}({parts})"


def _setattr(_self: Any, name: str, _value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(_self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _getstate(self: Any) -> list[object]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _setstate(self: Any, state: list[object]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)
