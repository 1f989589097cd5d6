"""What is called instead of the model: a part of it that a wrapper, or a loop of one's own, calls.

`PeftModel.generate` calls the model it adapts; so does many a wrapper's own `generate`, after it
had an image encoded. Whoever records the wrapper means what goes on with the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.capture.replaced.entrances import entrances
from kvtrace.record.capture.replaced.generate import generates, meet_generate
from kvtrace.record.capture.running import passes
from kvtrace.record.capture.symbolic import is_symbolic
from kvtrace.record.capture.tokens.inputs import named, tokens_in
from kvtrace.record.modes import unseen_by_modes
from kvtrace.record.processes.local import here
from kvtrace.record.theirs import MODEL

_CONTAINERS = nn.ModuleList | nn.ModuleDict | nn.Sequential

Called = Callable[[nn.Module, "Mapping[str, object] | None"], None]
"""(part, arguments of its call; None: of its `generate`)."""


def inner_models(model: nn.Module) -> list[nn.Module]:
    """Parts of a model that may be called in its place: they hold most of its parameters."""
    known = {id(one) for _, one in entrances(model)}
    weights: dict[int, dict[int, int]] = {}
    half = sum(_weigh(model, weights).values()) / 2
    return [
        part
        for part in _heavy(model, half, weights)
        if id(part) not in known
        and not isinstance(part, _CONTAINERS)
        and any(True for _ in part.children())
        and not _encodes(part)
    ]


def _encodes(part: nn.Module) -> bool:
    """Whether this is a model of transformers that could go on with no cache: it reads images."""
    return MODEL.has(part) and not any(
        name.startswith(("past_", "cache")) for name in signature(part.forward).parameters
    )


def _heavy(
    module: nn.Module, half: float, weights: Mapping[int, Mapping[int, int]]
) -> Iterator[nn.Module]:
    """A module and the parts of it that hold more than half; what is within others is lighter."""
    met: set[int] = set()
    waiting = [module]
    while waiting:
        one = waiting.pop()
        if id(one) not in met and sum(weights[id(one)].values()) > half:
            met.add(id(one))
            yield one
            waiting += reversed(list(one.children()))


def _weigh(module: nn.Module, weights: dict[int, dict[int, int]]) -> dict[int, int]:
    """Bytes of each parameter in a module, by identity; those in its parts are noted, too."""
    found = weights.get(id(module))
    if found is None:
        own = module._parameters.values()
        found = {id(one): here(one).nbytes for one in own if one is not None}
        weights[id(module)] = found
        for part in module._modules.values():
            if part is not None:
                found |= _weigh(part, weights)
    return found


def listen_inside(model: nn.Module, called: Called) -> Callable[[], None]:
    """Be told when a part of a model is called with tokens, or generates; returns how to stop.

    Of those called, only large ones count, and none while the model itself generates. Not told of
    those within a forward that is watched.
    """
    parts = inner_models(model)
    own = {id(part) for part in model.modules()}
    if len(own) == 1:
        return lambda: None

    def arrive(one: nn.Module) -> None:
        if id(one) in own and one is not model:
            called(one, None)

    def before(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_symbolic() or passes() or generates(model):
            return
        with unseen_by_modes():
            given = named(part, args, kwargs)
            embedded = isinstance(given.get("inputs_embeds"), Tensor)
            if embedded or tokens_in(given) is not None:
                called(part, given)

    undo = [meet_generate(arrive)]
    undo += [
        part.register_forward_pre_hook(before, with_kwargs=True, prepend=True).remove
        for part in parts
        if not isinstance(part, torch.jit.ScriptModule)  # takes no hooks
    ]

    def stop() -> None:
        while undo:
            undo.pop()()

    return stop
