"""What is done to caches inside of a model before a text: set up, emptied, turned on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from msgspec.structs import replace
from torch import nn

from kvtrace.record.driving.ways.makers import by_method, filled_call, is_maker, is_reset
from kvtrace.record.driving.ways.offered import methods
from kvtrace.record.driving.ways.sizes import Sizes
from kvtrace.record.driving.ways.way import Begin, Room

_BOOLEAN = re.compile(r"(use_?|enable_?|kv_?)*(cache|caching|kv_?cache)(_?enabled|_?on)?")


def called(names: Sequence[str]) -> tuple[Begin, ...]:
    """Methods of the model that are called with nothing, one after the other."""
    return tuple(_by_name(name) for name in names)


def _by_name(name: str) -> Begin:
    return Begin(f"model.{name}()", lambda model, room: getattr(model, name)())


def _layerwise(name: str, said: str) -> Begin:
    """A method of inner modules, called on each of them."""

    def make(model: nn.Module, room: Room) -> object:
        for module in model.modules():
            found = getattr(module, name, None)
            if module is not model and callable(found):
                filled_call(found, Sizes.within(model, room))
        return None

    return Begin(f"{said} of every layer", make)


def inner_makers(model: nn.Module) -> list[Begin]:
    """Set-up methods that only inner modules have."""
    names = dict.fromkeys(
        name
        for module in model.modules()
        if module is not model
        for name, _ in methods(module)
        if is_maker(name)
    )
    return [_layerwise(name, f"{name}(…)") for name in names]


def resets(model: nn.Module) -> list[Begin]:
    """What empties the caches inside: the model's own method, else those of its layers."""
    own = [(name, one) for name, one in methods(model) if is_reset(name, one, model)]
    if own:
        return [replace(by_method(*own[0]), empties=True)]
    inner = dict.fromkeys(
        name
        for module in model.modules()
        if module is not model
        for name, method in methods(module)
        if is_reset(name, method, model)
    )
    return [replace(_layerwise(name, f"{name}()"), empties=True) for name in list(inner)[:1]]


def switches(model: nn.Module) -> list[Begin]:
    """Attributes that turn a cache on: `use_cache = False` somewhere in the model."""
    names = dict.fromkeys(
        name
        for module in model.modules()
        for name, value in vars(module).items()
        if value is False and _BOOLEAN.fullmatch(name.lower())
    )

    def make(name: str) -> Callable[[nn.Module, Room], object]:
        def turn_on(model: nn.Module, room: Room) -> object:
            for module in model.modules():
                if vars(module).get(name) is False:
                    setattr(module, name, True)
            return None

        return turn_on

    return [Begin(f"{name} = True is set", make(name)) for name in names]
