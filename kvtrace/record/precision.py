"""How exactly a device multiplies float32 now: TF32 and the like drop digits of every factor.

Measured, since many switches decide it: two interfaces of torch's, the environment of the libraries
under it, and what the device can do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

EXACT = torch.finfo(torch.float32).eps

_SIZE = 128
"""Of the matrices: large enough for the kernels that models meet."""

_known: dict[tuple[torch.device, str], float] = {}


def product_eps(device: torch.device) -> float:
    """The step, relative to 1, to which factors of float32 are rounded: 2⁻²³ where they aren't.

    Args:
        device: Where the product is calculated; 2⁻¹⁰ with TF32 there.
    """
    switches = _switches(device)
    if device.type == "meta" or (device.type == "cpu" and switches in ("none", "ieee", "highest")):
        return EXACT
    found = _known.get((device, switches))
    if found is None:
        found = _known[device, switches] = max(EXACT, 2 * _lost(device))
    return found


def product_dtype(device: torch.device) -> str | None:
    """What factors of float32 are rounded to, in the words of tolerances; None: to nothing else."""
    eps = product_eps(device)
    if eps <= 4 * EXACT:
        return None
    return "TF32" if eps <= 2**-10 else "bfloat16"


def _switches(device: torch.device) -> str:
    """Those of torch; the others stay as they are while a program runs."""
    backend = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    now = getattr(getattr(backend, "matmul", None), "fp32_precision", None)  # since torch 2.9
    return torch.get_float32_matmul_precision() if now is None else str(now)


def _lost(device: torch.device) -> float:
    """How far numbers from 1 to 2 are moved by a product with the identity."""
    plain = torch.autocast(device.type, enabled=False)
    with torch.no_grad(), _disable_current_modes(), torch._C.DisableTorchFunction(), plain:
        return _moved(device)


def _moved(device: torch.device) -> float:
    count = _SIZE * _SIZE
    numbers = 1 + torch.arange(count, dtype=torch.float32, device=device) / count
    factor = numbers.reshape(_SIZE, _SIZE)
    product: Tensor = factor @ torch.eye(_SIZE, device=device)
    return float((product - factor).abs().amax())
