"""Dtype, device and attention as the user names them, checked against what is possible here.

Knows torch and transformers' registry of attention implementations, no model.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvtrace.errors import UsageError
from kvtrace.models.request import AUTO
from kvtrace.text import safe

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
# Implementations that come with a package of their own.
_PACKAGES = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn.cute",
    "sageattention": "sageattention",
}


def dtype_named(name: str) -> torch.dtype | None:
    """The torch type; None for "auto", as the weights are stored.

    Raises:
        UsageError: No such type; lists what is possible.
    """
    if name == AUTO:
        return None
    if name not in _DTYPES:
        raise UsageError(f"--dtype {safe(name)}: possible are auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def device_named(name: str) -> torch.device:
    """The torch device; "auto" is the first accelerator, else the CPU.

    Raises:
        UsageError: No such device here; lists what is possible.
    """
    here = devices()
    if name == AUTO:
        return torch.device(here[-1] if len(here) == 1 else here[1])
    if f"{name}:0" in here:
        return torch.device(name, 0)
    if name not in here:
        raise UsageError(f"--device {safe(name)}: possible here are auto, {', '.join(here)}")
    return torch.device(name)


def devices() -> list[str]:
    """Devices of this machine, the CPU first; the rest are of the one kind that torch can use."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return ["cpu"]
    count = max(1, torch.accelerator.device_count())
    return ["cpu", *(f"{kind.type}:{index}" for index in range(count))]


def check_attention(name: str) -> None:
    """Refuse an attention implementation that can't be had here.

    Raises:
        UsageError: Unknown, or its package is missing; lists what is possible.
    """
    if name != AUTO and name not in attentions():
        raise UsageError(
            f"--attn {safe(name)}: possible here are auto, {', '.join(attentions())}; "
            "kernels from the hub are not loaded"
        )


def attentions() -> list[str]:
    """Attention implementations that can be had here."""
    known = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    return sorted(each for each in known if "|" not in each and _installed(each))


def _installed(attention: str) -> bool:
    package = _PACKAGES.get(attention)
    if package is None:
        return not attention.startswith("flash_attention")
    return find_spec(package.partition(".")[0]) is not None
