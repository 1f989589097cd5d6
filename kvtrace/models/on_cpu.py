"""`cuda` means the CPU: for scripts that say `.cuda()` on a machine without a GPU.

Active only inside the context; knows nothing of the scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

_HOME = torch.device("cpu")


class _Homeward(TorchFunctionMode):
    """Replaces every CUDA device in the arguments of torch functions."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = {name: _home(value) for name, value in (kwargs or {}).items()}
        if func is torch.Tensor.cuda:
            return args[0]
        return func(*(_home(value) for value in args), **named)


def _home(value: object) -> object:
    if isinstance(value, torch.device) and value.type == "cuda":
        return _HOME
    if isinstance(value, str) and value.partition(":")[0] == "cuda":
        return _HOME
    return value


@contextmanager
def cuda_means_cpu() -> Iterator[None]:
    """Inside, tensors and modules asked onto a GPU stay on the CPU."""
    with _Homeward():
        yield
