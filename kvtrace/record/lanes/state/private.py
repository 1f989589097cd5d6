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
from kvtrace.record.processes.local import address

LARGE_BYTES = 1 << 20
"""A memory up to this size is copied without a look at what it holds."""

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
_WIDER = {torch.complex64: torch.complex128}


class Copier:
    """Copies whatever it is given, each object once; one instance for what belongs together."""

    def __init__(
        self,
        weights: Iterable[Tensor],
        *,
        dtype: torch.dtype | None = None,
        zeros: Iterable[int] = (),
        constant: Callable[[Tensor], bool] = lambda _: False,
    ) -> None:
        """Nothing is copied yet.

        Args:
            weights: Shared, and so is every view of them.
            dtype: Floating tensors are copied in this one, weights too; None: as they are.
            zeros: Addresses of memory that is known to hold zeros only.
            constant: Whether a large tensor is believed never to change, and is shared.
        """
        self.zeros: set[int] = set()
        self.shared: list[Tensor] = []
        self.odd: list[str] = []
        self._dtype = dtype
        self._known_zeros = frozenset(zeros)
        self._constant = constant
        self._weights = {address(one) for one in weights}
        self._memories: dict[int, torch.UntypedStorage] = {}
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

    # ------------------------------------------------------------------ tensors

    def _tensor(self, tensor: Tensor) -> Tensor:
        wide = self._dtype is not None and (tensor.is_floating_point() or tensor.is_complex())
        try:
            weight = isinstance(tensor, nn.Parameter) or address(tensor) in self._weights
            if weight and not wide:
                return tensor
            if wide:
                return self._cast(tensor)
            return self._rebuilt(tensor)
        except (RuntimeError, NotImplementedError, TypeError):
            # no plain memory: quantised, sparse, a wrapper of another library
            return self._cloned(tensor)

    def _rebuilt(self, tensor: Tensor) -> Tensor:
        """The same view of a copy of its memory."""
        with torch.no_grad():
            memory = self._memory(tensor)
            if memory is None:
                return tensor
            out = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            out.set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())
        if tensor.is_conj():
            out = out.conj()
        return out

    def _memory(self, tensor: Tensor) -> torch.UntypedStorage | None:
        """The copy of a tensor's memory; None: it is shared."""
        memory = tensor.untyped_storage()
        key = memory.data_ptr()
        found = self._memories.get(key) if key else None
        if found is None:
            if memory.nbytes() > LARGE_BYTES:
                if key in self._known_zeros or _is_zero(memory):
                    found = _zeros(memory)
                    self.zeros.add(found.data_ptr())
                elif self._constant(tensor):
                    self.shared.append(tensor)
                    return None
            found = memory.clone() if found is None else found  # type: ignore[no-untyped-call]
            self._memories[key] = found
        return found

    def _cast(self, tensor: Tensor) -> Tensor:
        wanted = _WIDER.get(tensor.dtype, self._dtype)
        with torch.no_grad():
            out = tensor.detach().to(wanted, copy=True)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(out, requires_grad=tensor.requires_grad)
        return out

    def _cloned(self, tensor: Tensor) -> Tensor:
        try:
            return tensor.detach().clone()
        except (RuntimeError, NotImplementedError, TypeError):
            return cast(Tensor, self._give_up(tensor, "a tensor that can't be copied"))

    # ------------------------------------------------------------------ modules and objects

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
        if _is_ours(kind) or kind.__module__.startswith("torch.distributed"):
            return thing  # or a tie to other processes, of which there is one
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


def _is_zero(memory: torch.UntypedStorage) -> bool:
    """Whether a memory holds zeros only; the first bytes usually tell."""
    if memory.device.type != "cpu":
        return False
    whole = torch.empty(0, dtype=torch.uint8).set_(memory)
    array = whole[: len(whole) // 8 * 8].view(torch.int64)
    return not array[:4096].any() and not array.any() and not whole[len(array) * 8 :].any()


def _zeros(like: torch.UntypedStorage) -> torch.UntypedStorage:
    """Zeros that take no memory before they are written."""
    return torch.from_numpy(np.zeros(like.nbytes(), np.uint8)).untyped_storage()


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
