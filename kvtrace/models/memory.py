"""Will it fit? An estimate before any weight is read.

Counts the parameters and buffers of the model built without storage, and the rows the cache
will hold. Leaves out activations, the recomputed lane's logits and the libraries themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from kvtrace.configs import count
from kvtrace.errors import MemoryLimitError
from kvtrace.units import byte_size

_MEMINFO = Path("/proc/meminfo")


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of the parameters, shared ones once."""
    return sum(each.numel() * each.element_size() for each in model.parameters())


def resident_bytes(model: nn.Module, dtype: torch.dtype | None) -> int:
    """Bytes of parameters and buffers, shared ones once, as they will be in memory.

    Args:
        model: May be without storage.
        dtype: Floats are cast to it; None keeps each as it is.
    """
    return sum(
        each.numel()
        * (_width(dtype) if dtype and each.is_floating_point() else each.element_size())
        for each in _tensors(model)
    )


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(each.numel() for each in model.parameters())


def cache_bytes(sizes: object, positions: int, width: int) -> int:
    """Bytes of K and V over all layers, by the configuration.

    layers · positions · (key_dim + value_dim) · kv_heads · width; with MLA a row is the latent
    and the rotary key (DeepSeek-V2, section 2.1.2). Takes every layer as full attention.

    Args:
        sizes: The text configuration.
        positions: Tokens held at the end.
        width: Bytes of one number.
    """
    layers = count(sizes, "num_hidden_layers")
    if latent := count(sizes, "kv_lora_rank"):
        row = latent + count(sizes, "qk_rope_head_dim")
    else:
        heads = count(sizes, "num_attention_heads")
        default = count(sizes, "hidden_size") // heads if heads else 0
        dim = count(sizes, "head_dim") or default
        row = 2 * dim * (count(sizes, "num_key_value_heads") or heads)
    return layers * positions * row * width


def check_fits(weights: int, cache: int, device: torch.device) -> None:
    """Compare an estimate with the memory that is free now.

    Raises:
        MemoryLimitError: It would not fit; with the numbers.
    """
    free = free_bytes(device)
    if free is not None and weights + cache > free:
        raise MemoryLimitError(
            f"out of memory before it starts: {byte_size(weights)} of weights and "
            f"{byte_size(cache)} of cache, but {byte_size(free)} are free on {device}; "
            "use --dtype bfloat16, fewer new tokens, or a smaller model"
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory that could be allocated now; None when the system does not say."""
    if device.type not in ("cpu", "mps"):
        try:
            return int(torch.get_device_module(device).mem_get_info(device)[0])
        except (AttributeError, RuntimeError):
            return None
    if not _MEMINFO.is_file():
        return None
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    seen: set[int] = set()
    for each in chain(model.parameters(), model.buffers()):
        if id(each) not in seen:
            seen.add(id(each))
            yield each


def _width(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()
