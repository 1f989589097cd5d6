"""What somebody's code offers: methods of the model, and names in its files."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from types import MethodType, ModuleType

from torch import nn

from kvtrace.record.whose import of_frameworks


def methods(module: nn.Module) -> Iterator[tuple[str, Callable[..., object]]]:
    """Methods that the user wrote, base classes of libraries left out; added ones come last."""
    for owner in type(module).__mro__:
        if of_frameworks(owner):
            break
        for name, value in vars(owner).items():
            if inspect.isfunction(value) or isinstance(value, staticmethod | classmethod):
                found = getattr(module, name, None)
                if callable(found):
                    yield name, found
    for name, value in list(vars(module).items()):
        if isinstance(value, MethodType) and value.__self__ is module:
            yield name, value


def spaces(model: nn.Module, script: ModuleType | None) -> list[dict[str, object]]:
    """Names of the user's file, and of the files beside that of the model's class."""
    found = [] if script is None else [dict(vars(script))]
    owner = type(model).__module__
    if of_frameworks(type(model)):
        return found
    if owner in sys.modules and sys.modules[owner] is not script:
        found.append(dict(vars(sys.modules[owner])))
    package, _, _ = owner.rpartition(".")
    if not package:
        return found
    beside = [
        dict(vars(module))
        for name, module in list(sys.modules.items())
        if name.rpartition(".")[0] == package and isinstance(module, ModuleType)
    ]
    return [*found, *beside]
