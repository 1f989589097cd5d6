"""The code that a model runs, as far as it can be read: functions of its classes, what these call.

Knows only somebody's own code: what libraries run is no place to keep rows in.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import CodeType, FunctionType, ModuleType

from torch import nn

from kvtrace.record.capture.replaced.stand_in import as_written
from kvtrace.record.whose import LIBRARIES, package_of

_MOST = 64
"""Files that are looked at."""


def classes_of(model: nn.Module) -> list[type]:
    """Classes of its modules that are of no library, and those they are made from."""
    kinds = dict.fromkeys(kind for module in model.modules() for kind in type(module).__mro__)
    return [one for one in kinds if package_of(one) not in LIBRARIES]


def functions_of(model: nn.Module) -> list[FunctionType]:
    """Functions of its classes, and those that they call by a global name or find in a table.

    The nearest first: what is called to print or to load leads to more files than are looked at.
    """
    found: list[FunctionType] = []
    files: set[str] = set()
    waiting = deque(
        one
        for kind in classes_of(model)
        for one in vars(kind).values()
        if isinstance(one, FunctionType)
    )
    seen: set[int] = set()
    while waiting and len(files) < _MOST:
        function = inspect.unwrap(as_written(waiting.popleft()))
        if not isinstance(function, FunctionType):
            continue  # a library's, in C
        space = function.__globals__
        file = str(space.get("__name__"))
        if id(function) in seen or file.partition(".")[0] in LIBRARIES:
            continue
        seen.add(id(function))
        files.add(file)
        found.append(function)
        names = tuple(names_in(function.__code__))
        for name in names:
            waiting += _in(space.get(name), names)
    return found


def _in(value: object, names: Iterable[str]) -> Iterator[FunctionType]:
    """Functions that a name stands for, or that are in what it stands for.

    Args:
        value: What it stands for.
        names: Looked up there, where it is a file.
    """
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, ModuleType):
        held = (vars(value).get(one) for one in names)
        yield from (one for one in held if isinstance(one, FunctionType))
    elif isinstance(value, dict | list | tuple | type):
        table = vars(value) if isinstance(value, type) else value
        within: Iterable[object] = table.values() if isinstance(table, Mapping) else table
        yield from (one for one in islice(within, _MOST) if isinstance(one, FunctionType))


def names_in(code: CodeType) -> Iterator[str]:
    """Names that a function may look up among its globals, or functions within it."""
    yield from code.co_names
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from names_in(one)
