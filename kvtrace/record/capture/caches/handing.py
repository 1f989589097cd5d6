"""The cache that a forward is handed and hands back, under either name that transformers gives it.

`past_key_values` is called `cache` since transformers 5.24. Asking for the old name there makes
transformers warn whoever runs the model, so the new one is asked for first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from kvtrace.record.theirs import CACHE, MODEL_OUTPUT
from kvtrace.record.whose import of_transformers

if TYPE_CHECKING:
    from transformers import Cache

OLD, NEW = NAMES = ("past_key_values", "cache")


def cache_given(arguments: Mapping[str, object]) -> object:
    """The cache among a forward's arguments; None: none of a kind that has these names.

    Under `cache`, people's own models take things of their own: those are not meant.
    """
    given = arguments.get(OLD)
    return _theirs(arguments.get(NEW)) if given is None else given


def cache_made(result: object) -> object:
    """The cache in what a forward gave back; None: there is none under these names."""
    if MODEL_OUTPUT.has(result):
        found = cast("dict[str, object]", result)
        return dict.get(found, NEW, dict.get(found, OLD))
    made = getattr(result, OLD, None)
    return _theirs(getattr(result, NEW, None)) if made is None else made


def cache_name(function: Callable[..., object]) -> str:
    """The name under which a forward, or what prepares its arguments, takes the cache."""
    names = inspect.signature(function).parameters
    return NEW if NEW in names and OLD not in names else OLD


def cache_to_begin(model: nn.Module) -> Cache | None:
    """The cache that `generate` begins with for a class of transformers; None: the model's own.

    Some fill one that they are handed, and hand none back.
    """
    able = getattr(model, "_supports_default_dynamic_cache", None)
    if able is None or not of_transformers(type(model)) or not able():
        return None
    from transformers import DynamicCache

    return DynamicCache(config=cast(Any, model).config.get_text_config(decoder=True))


def holds_keys(cache: object) -> bool:
    """Whether a cache of transformers holds keys in any layer."""
    layers = getattr(cache, "layers", None) or ()
    return any(getattr(layer, "keys", None) is not None for layer in layers)


def _theirs(value: object) -> object:
    return value if CACHE.has(value) else None
