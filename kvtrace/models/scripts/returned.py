"""What a factory returned: a model, with a tokenizer, a config, or an adapter around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType

import torch
from msgspec import Struct, field
from torch import nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from kvtrace.errors import ModelError
from kvtrace.models.scripts.functional import around, as_module
from kvtrace.models.spec import Source

FUNCTIONS = ("make_cache", "step")


class Returned(Struct, frozen=True):
    """The parts.

    Attributes:
        model: Untouched.
        tokenizer: As it was returned; None when there was none.
        functions: The adapter functions that were found.
        said: What somebody may not expect of that choice; empty: nothing.
    """

    model: nn.Module
    tokenizer: object = None
    functions: Mapping[str, Callable[..., object]] = field(default_factory=dict)
    said: str = ""


def take_apart(made: object, module: ModuleType, source: Source) -> Returned:
    """The model and what came with it.

    Raises:
        ModelError: There is no model in it, or one without values.
    """
    model, others, adapter = _parts(made)
    if model is None:
        raise ModelError(f"{source.name}: {_complaint(made)}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"{source.name}: it returned a model that torch.jit runs, and that shows nothing of "
            "what it does; return the model that it was made of"
        )
    if any(map(is_lazy, model.parameters())):
        raise ModelError(
            f"{source.name}: it has lazy layers, which have no weights before their first call; "
            "call the model once, with any tokens, before it is returned"
        )
    if any(one.is_meta for one in (*model.parameters(), *model.buffers())):
        raise ModelError(
            f"{source.name}: its weights are on the meta device, so they have no values; load a "
            "state dict with assign=True, or build the model on the CPU"
        )
    functions = {
        name: found
        for name in FUNCTIONS
        if callable(found := getattr(adapter or module, name, None))
    }
    functions = {name: one for name, one in functions.items() if not isinstance(one, nn.Module)}
    tokenizer = next((one for one in others if _is_tokenizer(one)), None)
    if tokenizer is None:
        # a second part that is no config either is somebody's tokenizer: it is asked to be one
        tokenizer = next((one for one in others if not _is_config(one)), None)
    if tokenizer is None and adapter is not None:
        tokenizer = getattr(adapter, "tokenizer", None) or _coder(adapter)
    more = sum(isinstance(one, nn.Module) for one in others)
    said = f"of the {more + 1} models it returned, the first is used" if more else ""
    return Returned(model, tokenizer, functions, said)


def _parts(made: object) -> tuple[nn.Module | None, list[object], object]:
    """(model, whatever else came with it, the adapter around it)."""
    if isinstance(made, ExportedProgram):
        made = made.module()
    if isinstance(made, nn.Module):
        return made, [], None
    if isinstance(made, Mapping):
        held = list(made.values())
    elif isinstance(made, tuple | list):
        held = list(made)
    elif isinstance(inner := getattr(made, "model", None), nn.Module):
        return inner, [], made
    elif callable(made) and not isinstance(made, type):
        return as_module(made), [], None
    else:
        return around(made) if hasattr(made, "__dict__") else None, [], None
    models = [one for one in held if isinstance(one, nn.Module)]
    if models:
        return models[0], [one for one in held if one is not models[0] and one is not None], None
    inner_parts = [_parts(one) for one in held if not isinstance(one, str | tuple | list | Mapping)]
    return next((each for each in inner_parts if each[0] is not None), (None, [], None))


def _is_tokenizer(value: object) -> bool:
    if isinstance(value, tuple) and len(value) == 2 and all(map(callable, value)):
        return True
    if isinstance(value, nn.Module):
        return False
    if isinstance(value, Mapping):
        items = list(value.items())[:50]
        return bool(items) and all(
            isinstance(key, str) and isinstance(one, int) and len(key) == 1 for key, one in items
        )
    return (
        hasattr(value, "encode")
        or hasattr(value, "stoi")
        or hasattr(value, "convert_ids_to_tokens")
    )


def _is_config(value: object) -> bool:
    """Settings, numbers, modules, what torch trains with: all that may come along unmeant."""
    plain = isinstance(value, Mapping | str | int | float | bool | nn.Module)
    of_torch = any(one.__module__.startswith("torch.") for one in type(value).__mro__)
    return plain or of_torch or _are_settings(value)


def _are_settings(value: object) -> bool:
    name = type(value).__name__.lower()
    return any(word in name for word in ("config", "args", "namespace", "params", "device"))


def _coder(adapter: object) -> object:
    encode, decode = (getattr(adapter, name, None) for name in ("encode", "decode"))
    return (encode, decode) if callable(encode) and callable(decode) else None


def _complaint(made: object) -> str:
    if inspect.isclass(made) and issubclass(made, nn.Module):
        return f"it returned the class {made.__name__}; return {made.__name__}(…), an object of it"
    if inspect.iscoroutine(made):
        made.close()
    known = (
        (made is None, "NoneType", "is a return missing?"),
        (_is_state(made), "a state dict", "load it into a model first"),
        (inspect.iscoroutine(made), "a coroutine", "the factory can't be async"),
        (inspect.isgenerator(made), "a generator", "return it, where the factory yields"),
        (_are_settings(made), type(made).__name__, "return the model that is built from it"),
    )
    found = ((kind, f": {remedy}") for is_it, kind, remedy in known if is_it)
    kind, remedy = next(found, (type(made).__name__, ""))
    return f"it returned {kind}; expected a torch.nn.Module, or (model, tokenizer){remedy}"


def _is_state(made: object) -> bool:
    return isinstance(made, Mapping) and any(hasattr(one, "shape") for one in made.values())
