"""Copies of tensors: weights and their views are shared, views of one memory stay together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from kvtrace.record.processes.local import address

LARGE_BYTES = 1 << 20
"""A memory up to this size is copied without a look at what it holds."""

_WIDER = {torch.complex64: torch.complex128}


class Tensors:
    """Copies tensors, each memory once.

    Attributes:
        zeros: Addresses of copies that hold zeros only.
        shared: Tensors that were not copied, as they are believed never to change.
    """

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
        self._dtype = dtype
        self._known_zeros = frozenset(zeros)
        self._constant = constant
        self._weights = {address(one) for one in weights}
        self._memories: dict[int, torch.UntypedStorage] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """The copy of a tensor; itself where it is shared.

        Raises:
            RuntimeError, NotImplementedError, TypeError: It can't be copied.
        """
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
            return tensor.detach().clone()

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
