"""How a cache that is passed may begin: made by somebody's code, of a class, a container, nothing.

Each is a guess that is tried on a private copy before anybody relies on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from torch import nn

from kvtrace.record.driving.ways.classes import classes, of_class
from kvtrace.record.driving.ways.makers import makers, makers_of_anything, part_of_made
from kvtrace.record.driving.ways.passed_on import is_empty
from kvtrace.record.driving.ways.roles import Parameter
from kvtrace.record.driving.ways.sizes import Sizes
from kvtrace.record.driving.ways.way import Begin, Room


def _layers(model: nn.Module) -> int:
    return Sizes(model, 0).of("layers") or 1


NOTHING = Begin("None", lambda model, room: None)

CONTAINERS = (
    Begin("an empty dict", lambda model, room: {}),
    Begin("a list of None", lambda model, room: [None] * _layers(model)),
    Begin("an empty list", lambda model, room: []),
    Begin("a list of empty dicts", lambda model, room: [{} for _ in range(_layers(model))]),
    Begin("a list of empty lists", lambda model, room: [[] for _ in range(_layers(model))]),
    Begin(
        "a list of (None, None)",
        lambda model, room: [(None, None) for _ in range(_layers(model))],
    ),
    Begin(
        "a list of [None, None]",
        lambda model, room: [[None, None] for _ in range(_layers(model))],
    ),
    Begin(
        "a dict of None for every layer",
        lambda model, room: dict.fromkeys(range(_layers(model))),
    ),
    Begin("a tuple of None", lambda model, room: (None,) * _layers(model)),
)


def begins_of(model: nn.Module, parameter: Parameter, script: ModuleType | None) -> list[Begin]:
    """All ways in which a cache that is passed may begin, the most natural first."""
    own = makers(model, script)
    kinds = classes(model, parameter, script)
    annotated = [
        one for kind, named in kinds if named for one in of_class(kind, parameter.annotation)
    ]
    others = [one for kind, named in kinds if not named for one in of_class(kind, "")]
    parts = [part for one in own for part in part_of_made(one)]
    unsaid = makers_of_anything(model, parameter)
    found = [*own, *parts, *annotated, NOTHING, *unsaid, *others, *CONTAINERS]
    if isinstance(parameter.default, Mapping | list | tuple) and is_empty(parameter.default):
        # a shared default argument is theirs to share: it is left out, as they leave it out
        return found
    return found


OF_TRANSFORMERS = "transformers' DynamicCache()"


def transformers_cache() -> Begin:
    """The cache that transformers' models take."""

    def make(model: nn.Module, room: Room) -> object:
        from transformers import DynamicCache

        return DynamicCache()

    return Begin(OF_TRANSFORMERS, make)
