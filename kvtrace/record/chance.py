"""Random numbers that our own work draws, without a trace in those that the user draws."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn

OTHER_SEED = 0x6B76
"""Any but the one that a first call happened to start from."""


def own_chance(model: nn.Module) -> AbstractContextManager[None]:
    """Random numbers go on afterwards as if none had been drawn, on the model's devices too."""
    devices = {one.device for one in model.parameters() if one.device.type == "cuda"}
    return torch.random.fork_rng(devices=list(devices))
