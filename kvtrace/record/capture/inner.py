"""What is called instead of the model: a part of it that a wrapper, or a loop of one's own, calls.

`PeftModel.generate` calls the model it adapts; so does many a wrapper's own `generate`. Whoever
records the wrapper means what it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from kvtrace.record.capture.entrances import entrances
from kvtrace.record.capture.generate import meet_generate
from kvtrace.record.capture.inputs import tokens_in
from kvtrace.record.local import here

_CONTAINERS = nn.ModuleList | nn.ModuleDict | nn.Sequential

Called = Callable[[nn.Module, "Mapping[str, object] | None"], None]
"""(part, arguments of its call; None: of its `generate`)."""


def inner_models(model: nn.Module) -> list[nn.Module]:
    """Parts of a model that may be called in its place: they hold most of its parameters."""
    known = {id(one) for _, one in entrances(model)}
    return [
        part
        for part in _heavy(model, _weight(model) / 2, set())
        if id(part) not in known
        and not isinstance(part, _CONTAINERS)
        and any(True for _ in part.children())
    ]


def _heavy(module: nn.Module, half: float, met: set[int]) -> Iterator[nn.Module]:
    """A module and the parts of it that hold more than half; what is within others is lighter."""
    if id(module) not in met and _weight(module) > half:
        met.add(id(module))
        yield module
        for part in module.children():
            yield from _heavy(part, half, met)


def _weight(module: nn.Module) -> int:
    return sum(here(one).nbytes for one in module.parameters())


def listen_inside(model: nn.Module, called: Called) -> Callable[[], None]:
    """Be told when a part of a model is called with tokens, or generates; returns how to stop.

    Told of every such call, also of those within a call of the model.
    """
    parts = inner_models(model)
    if not parts:
        return lambda: None

    def arrive(one: nn.Module) -> None:
        if any(one is part for part in parts):
            called(one, None)

    def before(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _named(args, kwargs)
        embedded = isinstance(given.get("inputs_embeds"), Tensor)
        if embedded or tokens_in(given) is not None:
            called(part, given)

    undo = [meet_generate(arrive)]
    undo += [
        part.register_forward_pre_hook(before, with_kwargs=True, prepend=True).remove
        for part in parts
    ]

    def stop() -> None:
        while undo:
            undo.pop()()

    return stop


def _named(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, object]:
    return {**{f"argument {place}": one for place, one in enumerate(args)}, **kwargs}
