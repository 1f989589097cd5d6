"""Methods and functions of people's code that make or empty caches, told by their names."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import FunctionType, ModuleType

from torch import nn

from kvtrace.record.driving.ways.offered import methods, spaces
from kvtrace.record.driving.ways.roles import Parameter, parameters_of
from kvtrace.record.driving.ways.sizes import Sizes, UnknownSizeError
from kvtrace.record.driving.ways.way import Begin, Room

_THING = r"(kv|cache|caches|caching|past|memory|state|states|buffers?)"
_MAKES = re.compile(
    r"(_?)(make|new|init|initiali[sz]e|create|build|get|empty|alloc|allocate|setup|set_up|set|"
    r"install|prepare|enable|start|init_|initial|fresh|reserve|attach|add|use|with)"
    rf"_?(\w*_)?{_THING}(_\w+)?"
)
_RESETS = re.compile(
    r"(reset|clear|flush|empty|wipe|zero|free|forget|discard|erase|restart)_?((\w*_)?(kv|kvs|cache"
    r"|caches|state|states|memory"
    r"|history|past|buffers?))?(_\w+)?"
)
_TABLES = re.compile(
    r"(^|_)(rope|rotary|freqs?|cos|sin|mask|bias|tril|causal|alibi|positions?|embeddings?)(_|$)"
)
"""What is kept in a cache of tables holds nothing of the text."""

_MAKES_SOMETHING = re.compile(
    r"(make|new|create|build|get|empty|alloc|allocate|start|begin|init|initial|fresh|reserve|blank)"
    r"(_\w+)?"
)
"""What may make anything, a cache too."""

_SHORTEST = 3
"""Letters of a word that may be short for another."""

_NO_RESETS = re.compile(r"\w*(param|weight|grad|optim|metric|hook|stat$|stats|peak)\w*")


def makers(model: nn.Module, script: ModuleType | None) -> list[Begin]:
    """Methods of the model, and functions of the file, that make or set up caches."""
    made = [by_method(name, one) for name, one in methods(model) if is_maker(name)]
    found: dict[FunctionType, str] = {}
    for space in spaces(model, script):
        for name, value in space.items():
            if isinstance(value, FunctionType) and is_maker(name) and name != "make_cache":
                found.setdefault(value, name)
    return [*made, *(_by_function(name, value) for value, name in found.items())]


def makers_of_anything(model: nn.Module, parameter: Parameter) -> list[Begin]:
    """Methods whose names don't say what they make: theirs is a cache if it does as one.

    Those that are called after the parameter come first.
    """
    after = [pair for pair in methods(model) if _called_after(pair[0], parameter.name)]
    others = [pair for pair in methods(model) if _MAKES_SOMETHING.fullmatch(pair[0].lower())]
    named = [
        (name, one)
        for name, one in dict([*after, *others]).items()
        if not (is_maker(name) or _NO_RESETS.fullmatch(name.lower()))
    ]
    return [by_method(name, one) for name, one in named]


def _called_after(method: str, parameter: str) -> bool:
    """Whether the last word of a method is a parameter's, or what that is short for."""
    whole, short = method.lower().rpartition("_")[2], parameter.lower().rpartition("_")[2]
    letters = iter(whole)
    return (
        len(short) >= _SHORTEST and whole[:1] == short[0] and all(one in letters for one in short)
    )


def part_of_made(begin: Begin) -> list[Begin]:
    """A maker that returns several things: the first that looks like a cache, for each place."""

    def make(place: int) -> Callable[[nn.Module, Room], object]:
        def one(model: nn.Module, room: Room) -> object:
            made = begin.make(model, room)
            if not isinstance(made, tuple) or place >= len(made):
                raise UnknownSizeError("a tuple")
            return made[place]

        return one

    return [Begin(f"{begin.said}[{place}]", make(place)) for place in range(2)]


def is_maker(name: str) -> bool:
    """Whether what has this name may make or set up a cache."""
    name = name.lower()
    return bool(_MAKES.fullmatch(name)) and not (_RESETS.fullmatch(name) or _TABLES.search(name))


def makes_something(name: str) -> bool:
    """Whether what has this name may make anything: of a class, its objects."""
    name = name.lower()
    return name.startswith(("from_", "for_")) or bool(_MAKES_SOMETHING.fullmatch(name))


def is_reset(name: str, method: Callable[..., object], model: nn.Module) -> bool:
    """Whether a method empties caches by its name, and needs nothing but sizes.

    A private one must say that it is about caches: it may reset anything else.
    """
    fits = _RESETS.fullmatch(name.lower().removeprefix("_"))
    if not fits or _NO_RESETS.fullmatch(name.lower()) or (name[0] == "_" and not fits[2]):
        return False
    try:
        Sizes(model, 0).fill(method)
    except UnknownSizeError:
        return False
    return True


def by_method(name: str, method: Callable[..., object]) -> Begin:
    """A method of the model is called with sizes, as far as it takes any."""

    def make(model: nn.Module, room: Room) -> object:
        return filled_call(getattr(model, name), Sizes.within(model, room))

    return Begin(f"model.{name}({'…' if parameters_of(method) else ''})", make)


def _by_function(name: str, function: Callable[..., object]) -> Begin:
    def make(model: nn.Module, room: Room) -> object:
        return filled_call(function, Sizes.within(model, room))

    return Begin(f"{name}(…)", make)


def filled_call(function: Callable[..., object], sizes: Sizes) -> object:
    """A function with its required arguments, and a capacity where it takes one."""
    filled = sizes.fill(function)
    if not any(isinstance(value, int) and value == sizes.capacity for value in filled.values()):
        everything = sizes.fill(function, all_of_it=True)
        filled |= {name: one for name, one in everything.items() if one == sizes.capacity}
    kinds = [one.name for one in parameters_of(function) if one.name == "dtype"]
    filled |= sizes.named(kinds)  # a default may be the type of somebody's checkpoint
    return function(**filled)
