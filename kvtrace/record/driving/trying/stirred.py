"""Other weights to try a model with, whose own let nothing of earlier tokens through.

Projections begin as zeros in many models, so that attention adds nothing before they are trained:
then no logit tells whether a step saw a cache. The same code with other weights does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from msgspec.structs import replace
from torch import nn

from kvtrace.record.chance import OTHER_SEED
from kvtrace.record.driving.trying.evidence import Trials


def stirred(trials: Trials) -> Trials:
    """The same trials, on copies whose parameters are moved at random, all of them alike."""
    chance = torch.Generator().manual_seed(OTHER_SEED)
    known: dict[int, nn.Parameter] = {}
    for one in trials.model.parameters():
        if one.is_floating_point():
            known[id(one)] = _moved(one, chance)
    named = trials.model.named_parameters(remove_duplicate=False)
    others = {name: known[id(one)] for name, one in named if id(one) in known}
    return replace(trials, fresh=_with(trials.fresh, others), _seen={})


def _moved(parameter: nn.Parameter, chance: torch.Generator) -> nn.Parameter:
    """Of the same shape, its numbers spread as they are; as layers begin, where they are not."""
    held = parameter.detach()
    spread = float(held.float().std(correction=0)) if held.numel() else 0.0
    spread = spread or max(1, *held.shape[-1:]) ** -0.5
    noise = torch.randn(held.shape, generator=chance) * spread
    return nn.Parameter(held + noise.to(held), requires_grad=parameter.requires_grad)


def _with(
    fresh: Callable[[], nn.Module], others: dict[str, nn.Parameter]
) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        model = fresh()
        for name, one in others.items():
            path, _, last = name.rpartition(".")
            model.get_submodule(path)._parameters[last] = one
        return model

    return made
