"""The loops that people generate with, run as they are: what they pass is not what we would.

A prompt in pieces, guesses that are taken back, beams: who writes such a loop calls the model in
ways of their own, and has bugs in them that no other loop shows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import nn

from kvtrace.record.chance import own_chance
from kvtrace.record.driving.trying.observe import (
    FORMS,
    Generation,
    SeenEnoughError,
    counting_all,
    generations,
)
from kvtrace.record.driving.trying.private import nothing_left, private_copy
from kvtrace.record.driving.ways.inside import resets
from kvtrace.record.driving.ways.way import Room

_MOST_CALLS = 16
"""Of one module, for each token that is asked for: a loop that goes on is not waited for."""


def own_loops(
    model: nn.Module, script: ModuleType | None, prompt: Sequence[int], count: int
) -> list[tuple[str, Generation]]:
    """Their loops that call the model more than once, and end, by name; tried on copies.

    Args:
        model: Whose methods and the functions beside it are looked at.
        script: The file with those functions.
        prompt: Token ids.
        count: Tokens to generate.
    """
    found: dict[str, Generation] = {}
    for form in FORMS:
        for name, call in generations(model, script, form):
            for one in (call, counting_all(call)):
                if name not in found and _runs(model, script, one, prompt, count):
                    found[name] = one
    return list(found.items())


def run_loops(
    model: nn.Module, loops: Sequence[tuple[str, Generation]], prompt: Sequence[int], count: int
) -> None:
    """One after the other, each from an empty cache where the model can empty its own.

    Where one ends early, what it did until then can be looked at.
    """
    for _, call in loops:
        with torch.no_grad(), own_chance(model), contextlib.suppress(Exception):
            for begin in resets(model):
                begin.make(model, Room(len(prompt) + count))
            call(model, prompt, count)


def _runs(
    model: nn.Module,
    script: ModuleType | None,
    call: Generation,
    prompt: Sequence[int],
    count: int,
) -> bool:
    calls: dict[int, int] = {}
    most = _MOST_CALLS * count

    def counted(module: nn.Module, _: object) -> None:
        calls[id(module)] = calls.get(id(module), 0) + 1
        if calls[id(module)] > most:
            raise SeenEnoughError

    with contextlib.suppress(Exception), nothing_left(model, script):
        one = private_copy(model)
        for module in one.modules():
            module.register_forward_pre_hook(counted)
        run_loops(one, [("", call)], prompt, count)
    return 1 < max(calls.values(), default=0) <= most
