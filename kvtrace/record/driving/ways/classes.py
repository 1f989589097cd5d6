"""Classes of the user's code whose objects may be passed as a cache, and how such objects are made.

Each is a guess that is tried on a private copy before anybody relies on it.
"""

from __future__ import annotations

import contextlib
import enum
import re
import sys
from collections.abc import Callable
from types import ModuleType

from torch import Tensor, nn

from kvtrace.record.driving.ways.makers import makes_something
from kvtrace.record.driving.ways.roles import Parameter
from kvtrace.record.driving.ways.sizes import Sizes, UnknownSizeError
from kvtrace.record.driving.ways.way import Begin, Room
from kvtrace.record.whose import of_transformers

_ALLOCATES = re.compile(
    r"(init|initiali[sz]e|alloc|allocate|setup|set_up|create|build|make|prepare)"
    r"(_?(kv|cache|caches|buffers?|memory|storage|tensors))*"
)
_TAKES_ROWS = re.compile(
    r"_?(update|append|extend|add|put|push|write|store|insert|save|concat|cat|record|remember)"
    r"(_\w+)?"
)
"""Methods by which an object is handed rows, whatever its class is called."""


def classes(
    model: nn.Module, parameter: Parameter, script: ModuleType | None
) -> list[tuple[type, bool]]:
    """(class, named by the annotation) of what may be passed as a cache."""
    spaces = [vars(script)] if script is not None else []
    spaces += [
        vars(sys.modules[kind.__module__])
        for kind in dict.fromkeys(type(module) for module in model.modules())
        if kind.__module__ in sys.modules and not kind.__module__.startswith("torch.")
    ]
    found: dict[type, bool] = {}
    for space in spaces:
        for name, value in list(space.items()):
            if not isinstance(value, type) or value.__module__ in ("typing", "builtins"):
                continue
            named = re.search(rf"\b{re.escape(name)}\b", parameter.annotation) is not None
            is_torch = value.__module__.startswith("torch")
            told = "cache" in name.lower() or _is_params(name)
            if (named and not is_torch) or told or _takes_rows(value, space):
                found[value] = found.get(value, False) or named
    return sorted(found.items(), key=lambda each: (not each[1], "ache" not in each[0].__name__))


def _takes_rows(kind: type, space: dict[str, object]) -> bool:
    """Whether a class of the user's own is no module and has a method that is handed rows."""
    if kind.__module__ != space.get("__name__") or issubclass(kind, nn.Module | enum.Enum):
        return False
    return any(_TAKES_ROWS.fullmatch(name.lower()) for name in vars(kind))


def _is_params(name: str) -> bool:
    return name.lower() in ("inferenceparams", "inferencestate", "decodestate", "modelstate")


def of_class(kind: type, annotation: str) -> list[Begin]:
    """An object of a class, or one for every layer; heads may mean kv heads."""

    def single(grouped: bool) -> Callable[[nn.Module, Room], object]:
        def make(model: nn.Module, room: Room) -> object:
            return _constructed(kind, Sizes.within(model, room, grouped))

        return make

    def each(grouped: bool) -> Callable[[nn.Module, Room], object]:
        def make(model: nn.Module, room: Room) -> object:
            sizes = Sizes.within(model, room, grouped)
            layers = sizes.of("layers")
            if not layers:
                raise UnknownSizeError("the number of layers")
            return [_constructed(kind, sizes) for _ in range(layers)]

        return make

    name = kind.__name__
    one = [Begin(f"{name}(…)", single(not n), of_class=True, number=n) for n in (0, 1)]
    many = [Begin(f"a {name}(…) for every layer", each(not n), number=n) for n in (0, 1)]
    listed = re.search(r"[Ll]ist|[Tt]uple|Sequence|Iterable", annotation) is not None
    return [*many, *one] if listed else [*one, *many]


def _constructed(kind: type, sizes: Sizes) -> object:
    if of_transformers(kind):
        return kind()
    try:
        made = kind(**sizes.fill(kind))
    except UnknownSizeError:
        return _made_by(kind, sizes)
    return made if _holds_tensors(made) else _allocated(made, sizes)


def _made_by(kind: type, sizes: Sizes) -> object:
    """What a class method makes, where the class itself can't be called.

    Raises:
        UnknownSizeError: No such method can be called either.
    """
    for name, one in vars(kind).items():
        if isinstance(one, classmethod | staticmethod) and makes_something(name):
            method = getattr(kind, name)
            with contextlib.suppress(UnknownSizeError):
                made = method(**sizes.fill(method))
                if isinstance(made, kind):
                    return made
    raise UnknownSizeError(kind.__name__)


def _allocated(made: object, sizes: Sizes) -> object:
    """An object after the method by which it gets its memory, where there is one such method."""
    named = [name for name in vars(type(made)) if _ALLOCATES.fullmatch(name.lower())]
    for name in named[:1]:
        method = getattr(made, name)
        with contextlib.suppress(UnknownSizeError):
            other = method(**sizes.fill(method))
            return other if isinstance(other, type(made)) else made
    return made


def _holds_tensors(value: object, depth: int = 2) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, dict | list | tuple):
        parts = list(value.values()) if isinstance(value, dict) else list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    return bool(depth) and any(_holds_tensors(one, depth - 1) for one in parts)
