"""Models that can only be asked to generate: one token at a time, each time anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec import Struct
from torch import Tensor, nn

from kvtrace.errors import ModelError
from kvtrace.record.driving.entrance import through
from kvtrace.record.driving.trying.observe import generation_arguments, generators
from kvtrace.record.driving.trying.private import nothing_left, private_copy
from kvtrace.record.driving.wish import Wish
from kvtrace.record.processes.local import device_of


class Generating(Struct, frozen=True):
    """Calls `generate(ids, 1)`; the model chooses the token.

    Attributes:
        model: Whose forward is its generating method.
    """

    model: nn.Module

    def step(self, tokens: Sequence[int]) -> int:
        """The token that the model appends.

        Raises:
            ModelError: It did not return ids with one more.
        """
        device = device_of(self.model)
        ids = torch.tensor([list(tokens)], device=device)
        with torch.no_grad():
            unnamed, named = generation_arguments(self.model.forward, ids, 1)
            result = self.model(*unnamed, **named)
        found = result[0] if isinstance(result, tuple | list) and result else result
        if not isinstance(found, Tensor) or found.is_floating_point():
            raise ModelError(f"it returned {type(found).__name__}, expected token ids")
        flat = found.flatten().tolist()
        if len(flat) not in (1, len(tokens) + 1):
            raise ModelError(f"it returned {len(flat)} ids for {len(tokens)} and one new one")
        return int(flat[-1])


def by_generating(model: nn.Module, wish: Wish) -> tuple[nn.Module, str] | None:
    """The model with its generating method as forward, and the method; None: it has none."""
    for name in generators(model):
        try:
            with nothing_left(model, wish.script):
                Generating(through(private_copy(model), name)).step(list(wish.prompt) or [0, 1])
        except Exception:
            continue
        return through(model, name), name
    return None
