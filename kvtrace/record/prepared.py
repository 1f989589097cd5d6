"""What a step of generation gives a forward, where a model's class says that itself.

A class written for transformers outside of it has a `prepare_inputs_for_generation` of its own:
where its positions come from, and which mask it wants, stands there and nowhere else. A forward
called past it may count every token as the first.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from kvtrace.errors import ModelError
from kvtrace.record.capture.caches.handing import cache_name
from kvtrace.record.whose import of_transformers
from kvtrace.text import safe

METHOD = "prepare_inputs_for_generation"

_OF_ALL = "transformers.generation.utils"
"""Where the method is written that classes of transformers have without one of their own."""

_IDS = "input_ids"

_FIRST = "is_first"
"""How flags begin that say whether a call is that of the prompt."""


def prepares(model: nn.Module) -> bool:
    """Whether a class outside transformers has such a method of its own."""
    method = getattr(type(model), METHOD, None)
    return inspect.isfunction(method) and not of_transformers(method)


def positions_of(model: nn.Module) -> Callable[[Tensor], Tensor | None]:
    """Positions that `generate` gives a class of transformers: some count from 0 without them.

    Somebody's own class is given none: how it counts by itself is what is asked.

    Returns:
        From all token ids so far, [1, rows]: [1, rows], or with an axis for each kind of position
        before; None: it is given none.
    """
    make = getattr(model, "_prepare_position_ids_for_generation", None)
    known = make is not None and of_transformers(type(model))
    takes = known and "position_ids" in _names(model.forward)
    if make is None or not takes or getattr(model.config, "is_encoder_decoder", False):
        return lambda _: None

    def positions(ids: Tensor) -> Tensor | None:
        try:
            found = make(ids, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        except Exception:  # of another version: what is asked for then may be anything
            return None
        right = isinstance(found, Tensor) and found.shape[-1] == ids.shape[1]
        return _as_prepared(model, ids, found) if right else None

    return positions


def _as_prepared(model: nn.Module, ids: Tensor, positions: Tensor) -> Tensor | None:
    """What a class makes of positions in its preparation: some count from 1, some drop them."""
    method = getattr(type(model), METHOD)
    if method.__module__ == _OF_ALL:
        return positions
    told = {"attention_mask": torch.ones_like(ids), "position_ids": positions, "use_cache": True}
    flags = {name: True for name in _names(method) if name.startswith(_FIRST)}
    try:
        found = method(model, ids, past_key_values=None, **told, **flags).get("position_ids")
    except Exception:  # it wants more than a text: an image, the codes of a sound
        return positions
    right = isinstance(found, Tensor) and found.shape == positions.shape
    return found if right or found is None else positions


def prepared(model: nn.Module, ids: Tensor, before: int, cache: object) -> dict[str, Any]:
    """Arguments of a forward: the model's own; the usual ones where its method raises.

    Args:
        model: One that prepares.
        ids: All tokens so far, [1, rows].
        before: How many of them were fed.
        cache: What the last forward gave back; None before the first.

    Raises:
        ModelError: Several tokens are new, it prepares the last one, and counts in the cache that
            the others were fed.
    """
    mask = torch.ones_like(ids)
    several = 0 < before < ids.shape[1] - 1
    try:
        counted = _numbers(cache)
        given = _made(model, ids, mask, before, cache)
        counts = _numbers(cache) != counted
        if several:
            given = _of_all(given, _made(model, ids, mask, 0, None), before, ids.shape[1])
    except Exception:  # written for another transformers: what they all give
        given = {
            "input_ids": ids[:, before:],
            cache_name(model.forward): cache,
            "attention_mask": mask,
        }
        given["position_ids"] = _places(ids, before)[None]
        taken = _names(model.forward)
        given = {name: value for name, value in given.items() if name in taken}
        counts = False
    if several and counts:
        kind = type(model).__name__
        raise ModelError(f"{kind} prepares one token at a time, and counts the others in its cache")
    if given.get("use_cache") is None and "use_cache" in _names(model.forward):
        given["use_cache"] = True
    return given


def as_overridden(
    model: nn.Module, ids: Tensor, before: int, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of a forward, with what a class of transformers makes of tokens by itself.

    Some want all tokens at every step, some add one to be predicted, and say so in a mask.

    Args:
        model: Any.
        ids: All tokens so far, [1, rows].
        before: How many of them were fed.
        given: What a forward is given otherwise.
    """
    method = getattr(type(model), METHOD, None)
    if method is None or method.__module__ == _OF_ALL:
        return dict(given)
    told = {"attention_mask": torch.ones_like(ids), "use_cache": True}
    told |= {name: before == 0 for name in _names(method) if name.startswith(_FIRST)}
    told |= {name: value for name, value in given.items() if name not in (*told, _IDS)}
    try:
        found = method(model, ids, next_sequence_length=ids.shape[1] - before, **told)
    except Exception:  # it wants more than a text: an image, the codes of a sound
        return dict(given)
    more = _names(model.forward) - given.keys() - {"attention_mask"} | {_IDS}
    return {**given, **{one: found[one] for one in more if found.get(one) is not None}}


def wants_more(
    model: nn.Module, given: Mapping[str, object], error: Exception, *, first: bool
) -> str:
    """What is said of a forward that asks for more than tokens; empty: that is not why it failed.

    Args:
        model: Raised it.
        given: What it was called with, by name.
        error: What it raised: `forward() missing … 'pixel_values'`, say.
        first: No call went well before.
    """
    kind, told = type(model).__name__, safe(str(error).strip().partition("\n")[0], 160)
    instead = "record a program that gives it some: kvtrace run script.py"
    if names := _lacking(model, given, error):
        return (
            f"{kind} asks for {', '.join(names)} beside the tokens, a prompt is text; {instead} "
            f"({told})"
        )
    theirs = of_transformers(type(model))
    if not first or not theirs or isinstance(error, MemoryError) or "memory" in told:
        return ""
    return (
        f"{kind} fails on token ids alone ({type(error).__name__}: {told}): a field of its "
        f"configuration may be wrong; if it reads more than text, {instead}"
    )


def _lacking(model: nn.Module, given: Mapping[str, object], error: Exception) -> list[str]:
    """Arguments of a forward that it asks for in what it raises, and was not given."""
    words = re.findall(r"\w+", str(error))
    if not isinstance(error, TypeError | ValueError) or any(name in words for name in given):
        return []  # it is about those that it was given
    return [name for name in _names(model.forward) if name in words]


def _made(
    model: nn.Module, ids: Tensor, mask: Tensor, before: int, cache: object
) -> dict[str, Any]:
    """What its own method makes of it."""
    method = cast("Callable[..., dict[str, Any]]", getattr(model, METHOD))
    known: dict[str, Any] = {"cache_position": _places(ids, before)}
    declared = _names(method)
    known |= {name: before == 0 for name in declared if name.startswith(_FIRST)}
    told = {name: value for name, value in known.items() if name in declared}
    return dict(
        method(ids, **{cache_name(method): cache}, attention_mask=mask, use_cache=True, **told)
    )


def _numbers(cache: object) -> dict[str, float]:
    """What an object says of itself in plain numbers: how many rows it holds, say."""
    said = getattr(cache, "__dict__", {})
    return {name: value for name, value in said.items() if isinstance(value, int | float)}


def _places(ids: Tensor, before: int) -> Tensor:
    return torch.arange(before, ids.shape[1], device=ids.device)


def _of_all(last: dict[str, Any], whole: dict[str, Any], before: int, total: int) -> dict[str, Any]:
    """What is said of all new tokens, where a class knows prompts and single tokens alone.

    Args:
        last: What it gives for a cache of some rows: of the last token, maybe.
        whole: What it gives for all tokens without a cache.
        before: Tokens that the cache holds.
        total: All of them.
    """

    def widened(value: object, full: object) -> object:
        if not (isinstance(value, Tensor) and isinstance(full, Tensor)):
            return value
        if value.dim() != full.dim():
            return value
        sizes = enumerate(zip(value.shape, full.shape, strict=True))
        axes = [at for at, both in sizes if both == (1, total)]
        if not axes or not torch.equal(full.narrow(axes[-1], total - 1, 1), value):
            return value
        return full.narrow(axes[-1], before, total - before)

    return {name: widened(value, whole.get(name)) for name, value in last.items()}


def _names(function: Callable[..., object] | object) -> set[str]:
    return set(inspect.signature(function).parameters)  # type: ignore[arg-type]
