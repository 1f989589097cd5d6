"""Private copies: everything a model may change while it runs, but not its weights.

A deepcopy that shares parameters, keeps views of one memory together, takes what functions close
over or bind as defaults, and gives up on one object at a time: what it can't copy is shared and
said.
"""

from __future__ import annotations

import copy
import functools
import types
import warnings
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from kvtrace.record.capture.replaced.stand_in import StandIn, as_written
from kvtrace.record.lanes.as_it_was.tensors import Tensors

MOST = 200_000
"""Objects that are copied at most: a model that holds its data set is not worth it."""

_ATOMS = frozenset(
    {
        type(None),
        type(Ellipsis),
        type(NotImplemented),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        range,
        slice,
        type,
        property,
        types.BuiltinFunctionType,
        types.ModuleType,
        types.CodeType,
        torch.dtype,
        torch.device,
        torch.Size,
        torch.memory_format,
        torch.layout,
    }
)
_PLAIN_DICTS = (dict, OrderedDict)


class Copier:
    """Copies whatever it is given, each object once; one instance for what belongs together.

    Attributes:
        tensors: Copies tensors.
        odd: What could not be copied, and is shared.
    """

    def __init__(self, tensors: Tensors) -> None:
        """Nothing is copied yet."""
        self.odd: list[str] = []
        self.tensors = tensors
        self._memo: dict[int, object] = {}
        self._alive: list[object] = []

    def of(self, thing: Any) -> Any:
        """The copy of a thing."""
        kind = type(thing)
        if kind in _ATOMS:
            return thing
        key = id(thing)
        if key in self._memo:
            return self._memo[key]
        if kind in _PLAIN_DICTS and not thing:
            self._alive.append(thing)
            made: Any = kind()
            self._memo[key] = made
            return made
        self._alive.append(thing)
        if len(self._alive) > MOST:
            raise OverflowError(f"it holds more than {MOST} objects")
        made = self._made(thing)
        self._memo[key] = made
        return made

    def _made(self, thing: Any) -> Any:
        builtin = _BUILTIN.get(type(thing))
        if builtin is not None:
            return builtin(self, thing)
        return next((make(self, thing) for kind, make in _BASES if isinstance(thing, kind)), None)

    def _tensor(self, tensor: Tensor) -> Tensor:
        try:
            return self.tensors.of(tensor)
        except (RuntimeError, NotImplementedError, TypeError):
            return cast(Tensor, self._give_up(tensor, "a tensor that can't be copied"))

    def _module(self, module: nn.Module) -> nn.Module:
        # not asking its class: each module of torch.fx would get one of its own, without a forward
        made = object.__new__(type(module))
        self._memo[id(module)] = made
        into = made.__dict__
        for name, value in vars(module).items():
            into[name] = value if name == "config" else self.of(value)
        for name, hooks in into.items():
            if name.endswith(("_hooks", "_pre_hooks")) and isinstance(hooks, dict) and hooks:
                _drop_ours(hooks)
        return made

    def _dict(self, thing: Any) -> Any:
        if not thing and type(thing) is dict:
            return {}
        made = type(thing)()
        self._memo[id(thing)] = made
        if hasattr(thing, "default_factory"):
            made.default_factory = self.of(thing.default_factory)
        for key, value in thing.items():
            made[self.of(key)] = self.of(value)
        return made

    def _list(self, thing: list[Any]) -> list[Any]:
        made: list[Any] = []
        self._memo[id(thing)] = made
        made.extend(self.of(one) for one in thing)
        return made

    def _set(self, thing: Any) -> Any:
        return type(thing)(self.of(one) for one in thing)

    def _function(self, function: types.FunctionType) -> Any:
        if _is_ours(function) or not _holds_something(function):
            return function
        closure = function.__closure__ or ()
        cells = tuple(types.CellType() for _ in closure)
        code, names = function.__code__, function.__globals__
        made = types.FunctionType(code, names, function.__name__, None, cells or None)
        self._memo[id(function)] = made
        made.__defaults__ = self.of(function.__defaults__)
        made.__kwdefaults__ = self.of(function.__kwdefaults__)
        made.__dict__.update(function.__dict__)
        for cell, old in zip(cells, closure, strict=True):
            try:
                cell.cell_contents = self.of(old.cell_contents)
            except ValueError:  # a variable that has no value yet
                continue
        return made

    def _method(self, method: types.MethodType) -> types.MethodType:
        return types.MethodType(self.of(method.__func__), self.of(method.__self__))

    def _partial(self, thing: functools.partial[Any]) -> functools.partial[Any]:
        args = [self.of(one) for one in thing.args]
        named = {name: self.of(value) for name, value in thing.keywords.items()}
        return functools.partial(self.of(thing.func), *args, **named)

    def _weak(self, thing: weakref.ref[Any]) -> Any:
        target = thing()
        known = None if target is None else self._memo.get(id(target))
        return thing if known is None else weakref.ref(known)

    def _object(self, thing: Any) -> Any:
        """An object of some class: its attributes, one by one."""
        kind: Any = type(thing)
        if _is_ours(kind) or kind.__module__.startswith(_SHARED):
            return thing
        if _is_native(kind):
            return _as_it_copies(thing)
        slots = [
            name
            for owner in kind.__mro__
            for name in _slots(owner)
            if name not in ("__dict__", "__weakref__")
        ]
        if not hasattr(thing, "__dict__") and not slots:
            return thing  # a lock, a generator, something of another language
        try:
            made = kind.__new__(kind)
        except TypeError:
            return self._give_up(thing, "its class can't be made empty")
        self._memo[id(thing)] = made
        self._fill(made, thing)
        for name, value in getattr(thing, "__dict__", {}).items():
            made.__dict__[name] = self.of(value)
        for name in slots:
            if hasattr(thing, name):
                object.__setattr__(made, name, self.of(getattr(thing, name)))
        return made

    def _fill(self, made: Any, thing: object) -> None:
        """What a dictionary or list holds, into an empty one of its class."""
        if isinstance(thing, dict):
            # an ordered one keeps its order beside the plain dict that it is
            put = (OrderedDict if isinstance(thing, OrderedDict) else dict).__setitem__
            for name, value in thing.items():
                put(made, self.of(name), self.of(value))
        elif isinstance(thing, list):
            list.extend(made, [self.of(one) for one in thing])

    def _give_up(self, thing: object, why: str) -> object:
        self.odd.append(f"{type(thing).__name__} ({why})")
        return thing


def _scripted(copier: Copier, thing: Any) -> Any:
    """Compiled code with its own weights: copied whole, by its own means."""
    made = _as_it_copies(thing)
    return copier._give_up(thing, "scripted") if made is thing else made


def _tuple(copier: Copier, thing: Any) -> Any:
    parts = [copier.of(one) for one in thing]
    kind: Any = type(thing)
    return kind(*parts) if hasattr(kind, "_fields") else kind(parts)


_SHARED = ("torch.distributed", "torch.fx.", "torch.utils._pytree", "sympy.")
"""Ties to other processes, of which there is one; graphs and shapes of exported code: as code."""

_BASES: tuple[tuple[type, Callable[[Copier, Any], Any]], ...] = (
    (StandIn, lambda copier, thing: copier.of(as_written(thing))),
    (Tensor, Copier._tensor),
    (torch.jit.ScriptModule, _scripted),
    (nn.Module, Copier._module),
    (tuple, _tuple),
    (np.ndarray, lambda _, thing: thing.copy()),
    (type, lambda _, thing: thing),
    (Enum, lambda _, thing: thing),
    (object, Copier._object),
)

_BUILTIN: dict[type, Callable[[Copier, Any], Any]] = {
    dict: Copier._dict,
    list: Copier._list,
    tuple: lambda self, thing: tuple([self.of(one) for one in thing]),
    set: Copier._set,
    frozenset: Copier._set,
    types.FunctionType: Copier._function,
    types.MethodType: Copier._method,
    functools.partial: Copier._partial,
    weakref.ref: Copier._weak,
    OrderedDict: Copier._dict,
    defaultdict: Copier._dict,
    Counter: Copier._dict,
    deque: lambda self, thing: deque([self.of(one) for one in thing], thing.maxlen),
}


def _is_native(kind: type) -> bool:
    """Whether its objects are made by another language: an empty one may crash whoever uses it."""
    made_by: object = kind.__new__
    plain: list[object] = [one.__new__ for one in (object, dict, list, set, BaseException)]
    return not isinstance(made_by, types.FunctionType) and made_by not in plain


def _as_it_copies(thing: Any) -> Any:
    """An object of another language, such as a random generator, if it knows how it is copied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return copy.deepcopy(thing)
        except Exception:
            return thing


def _slots(owner: type) -> Iterable[str]:
    found = vars(owner).get("__slots__", ())
    return (found,) if isinstance(found, str) else found


def _holds_something(function: types.FunctionType) -> bool:
    """Whether a function closes over variables, or binds objects as defaults of its arguments."""
    bound = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return function.__closure__ is not None or any(type(one) not in _ATOMS for one in bound)


def _is_ours(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith("kvtrace.")


def _drop_ours(hooks: dict[int, Any]) -> None:
    """Hooks of the recording do not belong to the model."""
    for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
        del hooks[key]
