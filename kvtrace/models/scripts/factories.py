"""The factory in the user's file, found by name or by looking, and called with what it needs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import partial
from types import ModuleType

from msgspec import Struct
from torch import nn

from kvtrace.errors import ModelError, UsageError
from kvtrace.models.scripts.definitions import Definitions
from kvtrace.models.scripts.mistakes import theirs
from kvtrace.models.spec import Source
from kvtrace.text import safe

_MAKES = re.compile(
    r"(build|make|create|load|get|init|new|setup|construct|factory)_?(the_|my_)?"
    r"(model|gpt|net|network|lm|llm|llama|transformer|decoder|all|both|everything)?(_and_\w+)?"
)
_VARIABLES = ("model", "net", "gpt", "lm", "llm", "transformer", "network", "decoder")
_CONFIG = re.compile(r".*(config|cfg|args|hparams|params|hyperparameters|settings)\w*", re.I)


class Factory(Struct, frozen=True):
    """How the model is made.

    Attributes:
        make: Makes it; of a variable, gives what is there.
        said: Sentences on what was chosen for the user, empty where they said all.
        once: It can't be made again: it is a variable.
    """

    make: Callable[[], object]
    said: tuple[str, ...] = ()
    once: bool = False


def find_factory(module: ModuleType, source: Source, left_out: Definitions | None) -> Factory:
    """The factory that was named, or the obvious one.

    Raises:
        UsageError: There is none of that name, or no obvious one; lists what there is.
    """
    if not source.factory:
        name = _obvious(module, source)
        found = _of_value(getattr(module, name), name, module, source)
        said = (f"{name} was taken for the factory", *found.said)
        return Factory(found.make, said, found.once)
    first, *inner = source.factory.split(".")
    value: object = getattr(module, first, None)
    if value is None and first not in vars(module):
        raise UsageError(_missing(module, source, left_out))
    for name in inner:
        if not hasattr(value, name):
            raise UsageError(f"{source.name}: {first} has no {name}")
        first, value = f"{first}.{name}", getattr(value, name)
    return _of_value(value, source.factory, module, source)


def _of_value(value: object, name: str, module: ModuleType, source: Source) -> Factory:
    """A function or class is called; anything else is what it would have returned."""
    callable_one = callable(value) and not isinstance(value, nn.Module)
    if not callable_one or _is_adapter(value):
        return Factory(lambda: value, once=True)
    function: Callable[..., object] = value  # type: ignore[assignment]
    filled, said = _arguments(function, name, module, source)
    hint = f"{', '.join(said)}; if that is not what it needs, {_build(name)}" if said else ""
    return Factory(lambda: theirs(source, lambda: function(**filled()), hint=hint), said)


def _build(name: str) -> str:
    """What to write where we can't call a function or class ourselves."""
    mine = "build" if name != "build" else "build_small"
    return f"add def {mine}(): return {safe(name)}(…), and name {mine}"


def _is_adapter(value: object) -> bool:
    """An object that has a model; not a class that makes such."""
    return not isinstance(value, type) and isinstance(getattr(value, "model", None), nn.Module)


# -- arguments -------------------------------------------------------------------------------


def _arguments(
    function: Callable[..., object], name: str, module: ModuleType, source: Source
) -> tuple[Callable[[], dict[str, object]], tuple[str, ...]]:
    """Values for required parameters: a config of the file, or a variable of the same name.

    Raises:
        ModelError: One is known nowhere.
    """
    makers: dict[str, Callable[[], object]] = {}
    said: list[str] = []
    unknown: list[str] = []
    for one in _parameters(function):
        if one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        found = _value_for(one, module)
        if found is None:
            unknown.append(one.name)
            continue
        text, makers[one.name] = found
        said.append(f"{one.name} of {name} is {text}")
    if unknown:
        names = "that name" if len(unknown) == 1 else "those names"
        raise ModelError(
            f"{source.name}: {safe(name)} needs {safe(', '.join(unknown))}, and the file has no "
            f"value of {names}; {_build(name)}"
        )
    return lambda: {key: make() for key, make in makers.items()}, tuple(said)


def _value_for(
    one: inspect.Parameter, module: ModuleType
) -> tuple[str, Callable[[], object]] | None:
    space = vars(module)
    annotation = one.annotation
    kind = annotation if isinstance(annotation, type) else space.get(str(annotation))
    if isinstance(kind, type) and kind.__module__ not in ("builtins", "typing") and _is_bare(kind):
        return f"{kind.__name__}()", kind
    for name in (one.name, one.name.upper(), one.name.lower()):
        if name in space and not callable(space[name]):
            return f"the file's {name}", partial(space.__getitem__, name)
    if not _CONFIG.fullmatch(one.name):
        return None
    held = [
        name
        for name, value in space.items()
        if _CONFIG.fullmatch(name)
        and not callable(value)
        and not isinstance(value, ModuleType)
        and (isinstance(value, Mapping) or hasattr(value, "__dict__"))
        and not name.startswith("__")
    ]
    if held:
        return f"the file's {held[0]}", partial(space.__getitem__, held[0])
    kinds = [
        value
        for name, value in space.items()
        if isinstance(value, type) and _CONFIG.fullmatch(name) and _is_bare(value)
    ]
    kinds.sort(key=lambda value: value.__module__ != module.__name__)
    if not kinds:
        return None
    return f"{kinds[0].__name__}()", kinds[0]


def _is_bare(kind: type) -> bool:
    """Whether a class can be constructed with nothing, as a dataclass with defaults."""
    if not (is_dataclass(kind) or _CONFIG.fullmatch(kind.__name__)):
        return False
    return all(
        one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        for one in _parameters(kind)
    )


def _parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


# -- looking ---------------------------------------------------------------------------------


def _obvious(module: ModuleType, source: Source) -> str:
    """The one name that clearly makes the model: a variable, a function, a class.

    Raises:
        UsageError: There is none, or there are several.
    """
    own = _own(module)
    variables = [name for name, value in vars(module).items() if isinstance(value, nn.Module)]
    functions = [
        name
        for name, value in own.items()
        if inspect.isfunction(value) and _MAKES.fullmatch(name.lower())
    ]
    classes = [name for name, value in own.items() if _makes_tokens(value)]
    usual = [name for name in variables if name in _VARIABLES]
    for kind in (usual[:1] or variables, functions, classes):
        if len(kind) == 1:
            return kind[0]
        if kind:
            raise UsageError(
                f"{source.name}: several could make the model; name one: "
                + ", ".join(f"{safe(source.place)}:{safe(name)}" for name in kind[:6])
            )
    raise UsageError(
        f"{source.name}: found no function that makes a model ({_there(module)}); "
        f"add def build(): return YourModel(…){_or_run(source)}"
    )


def _own(module: ModuleType) -> dict[str, object]:
    return {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
    }


def _makes_tokens(value: object) -> bool:
    """A module class that has a table of tokens of its own: a language model, not a layer."""
    if not (isinstance(value, type) and issubclass(value, nn.Module)):
        return False
    code = getattr(getattr(value.__init__, "__wrapped__", value.__init__), "__code__", None)
    return code is not None and "Embedding" in code.co_names


def _there(module: ModuleType) -> str:
    here = [name for name, value in _own(module).items() if callable(value)]
    here += [name for name, value in vars(module).items() if isinstance(value, nn.Module)]
    return (
        f"it has {safe(', '.join(dict.fromkeys(here[:8])))}" if here else "it defines no function"
    )


def _missing(module: ModuleType, source: Source, left_out: Definitions | None) -> str:
    line = left_out.made_by_skipped(source.factory) if left_out is not None else None
    if line is not None:
        return (
            f"{source.name}: {source.factory} is made in line {line}, which --definitions leaves "
            f"out; name a function or class instead ({_there(module)})"
        )
    there, name = _there(module), source.factory.partition(".")[0]
    return f"{source.name}: no function or class {name!r} there; {there}{_or_run(source)}"


def _or_run(source: Source) -> str:
    """What makes the model in its main block, say, is recorded by running it."""
    return f", or kvtrace run {safe(source.place)}" if source.kind == "file" else ""
