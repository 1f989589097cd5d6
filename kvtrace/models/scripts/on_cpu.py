"""`cuda` means the CPU: for scripts that say `.cuda()` on a machine without a GPU.

Active only inside the context; knows nothing of the scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode

_HOME = torch.device("cpu")
_NOTHING = (
    "synchronize",
    "empty_cache",
    "set_device",
    "reset_peak_memory_stats",
    "init",
    "manual_seed",
    "manual_seed_all",
)
_ZERO = ("current_device", "max_memory_allocated", "memory_allocated", "memory_reserved")


class _Homeward(TorchFunctionMode):
    """Replaces every CUDA device in the arguments of torch functions."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = _named_home(kwargs or {})
        if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:
            args = (args[0], _HOME, *args[2:])  # the number of a GPU
        return func(*(_home(value) for value in args), **named)


def _home(value: object) -> object:
    if isinstance(value, torch.device) and value.type == "cuda":
        return _HOME
    if isinstance(value, str) and value.partition(":")[0] == "cuda":
        return _HOME
    return value


def _named_home(kwargs: Mapping[str, object]) -> dict[str, object]:
    """Arguments by name: a device may be the number of a GPU."""
    return {
        name: _HOME if name == "device" and type(value) is int else _home(value)
        for name, value in kwargs.items()
    }


@contextmanager
def cuda_means_cpu(*, pretend: bool = False) -> Iterator[None]:
    """Inside, tensors and modules asked onto a GPU stay on the CPU.

    Args:
        pretend: Say that there is a GPU, to code that ends where there is none.
    """
    with ExitStack() as stack:
        for module, name, value in _replacements(pretend):
            stack.enter_context(patch.object(module, name, value))
        stack.enter_context(_Homeward())
        yield


def _replacements(pretend: bool) -> Iterator[tuple[Any, str, object]]:
    """Functions that name a device and are no torch functions."""
    yield torch, "load", _loads_here(torch.load)
    yield torch.jit, "load", _loads_here(torch.jit.load)
    yield torch, "set_default_device", _without_cuda(torch.set_default_device)
    yield torch, "set_default_tensor_type", _default_type
    yield torch.nn.Module, "to", _numbers_home(torch.nn.Module.to)
    yield torch, "Generator", _stand_in(torch.Generator)
    for name in _NOTHING:
        yield torch.cuda, name, lambda *_, **__: None
    for name in _ZERO:
        yield torch.cuda, name, lambda *_, **__: 0
    yield torch.cuda, "get_device_name", lambda *_: "the CPU"
    yield torch.cuda, "is_bf16_supported", lambda *_, **__: True
    if pretend:
        yield torch.cuda, "is_available", lambda: True
        yield torch.cuda, "device_count", lambda: 1


def _loads_here(load: Callable[..., object]) -> Callable[..., object]:
    """Tensors that were saved on a GPU come to the CPU, whatever is asked for."""

    def loaded(*args: object, **kwargs: object) -> object:
        asked = kwargs.get("map_location", args[1] if len(args) > 1 else None)
        if asked is None or _home(asked) is _HOME:
            kwargs["map_location"] = _HOME
            args = args[:1]
        return load(*args, **kwargs)

    return loaded


def _without_cuda(function: Callable[..., object]) -> Callable[..., object]:
    def called(*args: object, **kwargs: object) -> object:
        return function(*(_home(value) for value in args), **_named_home(kwargs))

    return called


def _stand_in(kind: type) -> type:
    """A class that is used as another one: made of no GPU, and named in annotations and checks."""

    class Meta(type):
        def __call__(cls, *args: object, **kwargs: object) -> object:
            return _without_cuda(kind)(*args, **kwargs)

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, kind)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, kind)

    return Meta(kind.__name__, (), {"__module__": kind.__module__})


def _numbers_home(function: Callable[..., object]) -> Callable[..., object]:
    """A method that takes the number of a GPU."""

    def called(module: object, *args: object, **kwargs: object) -> object:
        first = tuple(_HOME if type(value) is int else value for value in args)
        return function(module, *first, **_named_home(kwargs))

    return called


def _default_type(kind: object) -> None:
    """`torch.cuda.HalfTensor` and its like: their number type, on the CPU."""
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    names = {"Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64}
    word = name.rpartition(".")[2].removesuffix("Tensor")
    torch.set_default_dtype(names.get(word, torch.float32))
