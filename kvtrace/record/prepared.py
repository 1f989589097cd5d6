"""What a step of generation gives a forward, where a model's class says that itself.

A class written for transformers outside of it has a `prepare_inputs_for_generation` of its own:
where its positions come from, and which mask it wants, stands there and nowhere else. A forward
called past it may count every token as the first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from kvtrace.record.capture.caches.handing import cache_name

METHOD = "prepare_inputs_for_generation"

_FIRST = "is_first"
"""How flags begin that say whether a call is that of the prompt."""


def prepares(model: nn.Module) -> bool:
    """Whether a class outside transformers has such a method of its own."""
    method = getattr(type(model), METHOD, None)
    return inspect.isfunction(method) and not method.__module__.startswith("transformers.")


def positions_of(model: nn.Module) -> Callable[[Tensor], Tensor | None]:
    """Positions that `generate` gives a class of transformers: some count from 0 without them.

    Somebody's own class is given none: how it counts by itself is what is asked.

    Returns:
        From all token ids so far, [1, rows]: [1, rows], or with an axis for each kind of position
        before; None: it is given none.
    """
    make = getattr(model, "_prepare_position_ids_for_generation", None)
    known = make is not None and type(model).__module__.startswith("transformers.")
    takes = known and "position_ids" in _names(model.forward)
    if make is None or not takes or getattr(model.config, "is_encoder_decoder", False):
        return lambda _: None

    def positions(ids: Tensor) -> Tensor | None:
        try:
            found = make(ids, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        except Exception:  # of another version: what is asked for then may be anything
            return None
        right = isinstance(found, Tensor) and found.shape[-1] == ids.shape[1]
        return found if right else None

    return positions


def prepared(model: nn.Module, ids: Tensor, before: int, cache: object) -> dict[str, Any]:
    """Arguments of a forward: the model's own; the usual ones where its method raises.

    Args:
        model: One that prepares.
        ids: All tokens so far, [1, rows].
        before: How many of them were fed.
        cache: What the last forward gave back; None before the first.
    """
    mask = torch.ones_like(ids)
    try:
        given = _made(model, ids, mask, before, cache)
        if 0 < before < ids.shape[1] - 1:
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
    if given.get("use_cache") is None and "use_cache" in _names(model.forward):
        given["use_cache"] = True
    return given


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
