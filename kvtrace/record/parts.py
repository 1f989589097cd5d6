"""What arguments are made of: collections, and objects of people's own classes that hold tensors.

What a method makes up, or a function encloses, is not found here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from kvtrace.record.whose import LIBRARIES, package_of

_ATTENTION = re.compile(r"mask|bias|att(entio)?n", re.IGNORECASE)
_DEEP = 3
_MANY = 256
"""Parts of one, at most: more are no description of a few tokens."""


def parts_of(value: object) -> Mapping[object, object]:
    """What a collection or an object holds, by place or name; nothing where it is no such thing."""
    if isinstance(value, (str, bytes, type, nn.Module, Tensor)):
        return {}
    found: Mapping[object, object] = {}
    if type(value) is dict:
        found = value
    elif isinstance(value, list | tuple):
        names = getattr(value, "_fields", range(len(value)))
        found = dict(zip(names, value, strict=True))
    elif package_of(type(value)) not in LIBRARIES and not callable(value):
        slots = (one for kind in type(value).__mro__ for one in _slots(kind))
        held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        found = held | getattr(value, "__dict__", {})
    return found if len(found) <= _MANY else {}


def with_parts(value: Any, changed: Mapping[object, object]) -> Any:
    """A copy that holds other parts.

    Args:
        value: It.
        changed: Those that are others.
    """
    if type(value) is dict:
        return {**value, **changed}
    if isinstance(value, list | tuple):
        parts: list[Any] = list({**parts_of(value), **changed}.values())
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    made = copy.copy(value)
    for name, one in changed.items():
        object.__setattr__(made, str(name), one)  # also where it is frozen
    return made


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """An argument with its tensors changed, wherever they are in collections of one."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        parts = {name: mapped(part, change) for name, part in value.items()}
        return type(value)(**parts) if type(value) is not dict else parts
    if type(value) in (tuple, list):
        return type(value)(mapped(part, change) for part in value)
    return value


def flat(arguments: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Arguments and all that they are made of, by name."""
    for name, value in arguments.items():
        yield from _flat(name, value, _DEEP)


def named(name: str, part: object) -> str:
    """The name of a part."""
    return f"{name}.{part}" if isinstance(part, str) else f"{name}[{part}]"


def part_in(arguments: Mapping[str, object], name: str) -> object:
    """An argument, or what one of them holds: `batch.tokens` is no argument's name."""
    owner, _, part = name.partition(".")
    return parts_of(arguments[owner])[part] if part else arguments[owner]


def unread(arguments: Mapping[str, object]) -> Iterator[str]:
    """What is said of descriptions of attention in which no tensor is found."""
    for name, value in arguments.items():
        kind = type(value)
        if isinstance(value, type | nn.Module) or package_of(kind) in LIBRARIES:
            continue
        if not _ATTENTION.search(f"{name} {kind.__name__}"):
            continue
        if not any(isinstance(one, Tensor) for _, one in _flat(name, value, _DEEP)):
            yield (
                f"`{name}` is of class {kind.__name__}, which shows none of the tensors it makes: "
                "it can't be made to fit more tokens"
            )


def _flat(name: str, value: object, deep: int) -> Iterator[tuple[str, object]]:
    yield name, value
    for part, one in parts_of(value).items() if deep else ():
        yield from _flat(named(name, part), one, deep - 1)


def _slots(kind: type) -> tuple[str, ...]:
    found = vars(kind).get("__slots__", ())
    return (found,) if isinstance(found, str) else tuple(found)
