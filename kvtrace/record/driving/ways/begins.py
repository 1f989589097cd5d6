"""How a cache may begin: the model's own methods, cache classes of the user's code, containers.

Each is a guess that is tried on a private copy before anybody relies on it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType, ModuleType

from msgspec.structs import replace
from torch import nn

from kvtrace.record.driving.ways.classes import classes, of_class
from kvtrace.record.driving.ways.passed_on import is_empty
from kvtrace.record.driving.ways.roles import Parameter, parameters_of
from kvtrace.record.driving.ways.sizes import Sizes, UnknownSizeError
from kvtrace.record.driving.ways.way import Begin, Room
from kvtrace.record.whose import of_frameworks

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
_BOOLEAN = re.compile(r"(use_?|enable_?|kv_?)*(cache|caching|kv_?cache)(_?enabled|_?on)?")


def methods(module: nn.Module) -> Iterator[tuple[str, Callable[..., object]]]:
    """Methods that the user wrote, base classes of libraries left out; added ones come last."""
    for owner in type(module).__mro__:
        if of_frameworks(owner):
            break
        for name, value in vars(owner).items():
            if inspect.isfunction(value) or isinstance(value, staticmethod | classmethod):
                found = getattr(module, name, None)
                if callable(found):
                    yield name, found
    for name, value in list(vars(module).items()):
        if isinstance(value, MethodType) and value.__self__ is module:
            yield name, value


def makers(model: nn.Module, script: ModuleType | None) -> list[Begin]:
    """Methods of the model, and functions of the file, that make or set up caches."""
    named = [(name, _said(name, one)) for name, one in methods(model) if _is_maker(name)]
    made = [_by_method(name, said) for name, said in named]
    found: dict[FunctionType, str] = {}
    for space in spaces(model, script):
        for name, value in space.items():
            if isinstance(value, FunctionType) and _is_maker(name) and name != "make_cache":
                found.setdefault(value, name)
    return [*made, *(_by_function(name, value) for value, name in found.items())]


def spaces(model: nn.Module, script: ModuleType | None) -> list[dict[str, object]]:
    """Names of the user's file, and of the files beside that of the model's class."""
    found = [] if script is None else [dict(vars(script))]
    owner = type(model).__module__
    if of_frameworks(type(model)):
        return found
    if owner in sys.modules and sys.modules[owner] is not script:
        found.append(dict(vars(sys.modules[owner])))
    package, _, _ = owner.rpartition(".")
    if not package:
        return found
    beside = [
        dict(vars(module))
        for name, module in list(sys.modules.items())
        if name.rpartition(".")[0] == package and isinstance(module, ModuleType)
    ]
    return [*found, *beside]


def _is_maker(name: str) -> bool:
    name = name.lower()
    return bool(_MAKES.fullmatch(name)) and not (_RESETS.fullmatch(name) or _TABLES.search(name))


def _said(name: str, method: Callable[..., object]) -> str:
    return f"model.{name}({'…' if parameters_of(method) else ''})"


def called(names: Sequence[str]) -> tuple[Begin, ...]:
    """Methods of the model that are called with nothing, one after the other."""
    return tuple(_by_name(name) for name in names)


def _by_name(name: str) -> Begin:
    return Begin(f"model.{name}()", lambda model, room: getattr(model, name)())


def _by_method(name: str, said: str) -> Begin:
    def make(model: nn.Module, room: Room) -> object:
        return filled_call(getattr(model, name), Sizes.within(model, room))

    return Begin(said, make)


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


def _makers_of_anything(model: nn.Module, parameter: Parameter) -> list[Begin]:
    """Methods whose names don't say what they make: theirs is a cache if it does as one.

    Those that are called after the parameter come first.
    """
    after = [pair for pair in methods(model) if _called_after(pair[0], parameter.name)]
    others = [pair for pair in methods(model) if _MAKES_SOMETHING.fullmatch(pair[0].lower())]
    named = [
        (name, one)
        for name, one in dict([*after, *others]).items()
        if not (_is_maker(name) or _NO_RESETS.fullmatch(name.lower()))
    ]
    return [_by_method(name, _said(name, one)) for name, one in named]


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


def layerwise(module_said: str, names: tuple[str, ...]) -> Begin:
    """A method of inner modules, called on each of them."""

    def make(model: nn.Module, room: Room) -> object:
        for module in model.modules():
            for name in names:
                found = getattr(module, name, None)
                if module is not model and callable(found):
                    filled_call(found, Sizes.within(model, room))
        return None

    return Begin(module_said, make)


def inner_makers(model: nn.Module) -> list[Begin]:
    """Set-up methods that only inner modules have."""
    names = dict.fromkeys(
        name
        for module in model.modules()
        if module is not model
        for name, _ in methods(module)
        if _is_maker(name)
    )
    return [layerwise(f"{name}(…) of every layer", (name,)) for name in names]


def resets(model: nn.Module) -> list[Begin]:
    """What empties the caches inside: the model's own method, else those of its layers."""
    own = [(name, one) for name, one in methods(model) if _is_reset(name, one, model)]
    if own:
        return [replace(_by_method(own[0][0], _said(*own[0])), empties=True)]
    inner = dict.fromkeys(
        name
        for module in model.modules()
        if module is not model
        for name, method in methods(module)
        if _is_reset(name, method, model)
    )
    return [
        replace(layerwise(f"{name}() of every layer", (name,)), empties=True)
        for name in list(inner)[:1]
    ]


def _is_reset(name: str, method: Callable[..., object], model: nn.Module) -> bool:
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


# -- containers ----------------------------------------------------------------------------


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
    unsaid = _makers_of_anything(model, parameter)
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
