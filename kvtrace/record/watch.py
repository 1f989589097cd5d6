"""Watches a model: every outermost forward becomes one `Forward`, given to a callback.

Joins the patches of the attention interface and of caches with hooks on the model. Everything is
undone on exit, whatever happened inside. Knows nothing of traces.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.caches import CACHES, CacheTracker, RawUpdate, finished, follow, patch_class
from kvtrace.record.calls import AttentionCall
from kvtrace.record.forward import CacheChange, CacheUpdate, Forward
from kvtrace.record.interface import INTERFACE
from kvtrace.record.read import MaskReader, ModuleFacts, facts, read
from kvtrace.record.running import Pass, passes

__all__ = ["CacheChange", "CacheUpdate", "Forward", "Watch"]

Callback = Callable[[Forward], None]


class Watch:
    """`with Watch(model, callback):` calls back at the end of every outermost forward.

    The callback runs before the forward returns; its time is not the forward's. Errors it raises
    pass through to the caller.
    """

    def __init__(
        self,
        model: nn.Module,
        on_forward: Callback,
        *,
        on_begin: Callable[[Mapping[str, object]], None] | None = None,
    ) -> None:
        """Nothing is touched before `with`.

        Args:
            model: Any module; its outermost calls are watched, its encoder's too if it has one.
            on_forward: Given each finished forward.
            on_begin: Given the arguments of each forward that begins.
        """
        self.model = model
        self.num_forwards = 0
        self._on_forward = on_forward
        self._on_begin = on_begin
        self._names = {id(module): path for path, module in model.named_modules()}
        self._facts: dict[int, ModuleFacts] = {}
        self._tracker = CacheTracker()
        self._signatures: dict[int, inspect.Signature] = {}
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Watch:
        try:
            for patches in (INTERFACE, CACHES):
                patches.hold()
                self._undo.append(patches.release)
            self._undo.append(follow(self._tracker))
            for part, module in _entrances(self.model):
                self._hook(part, module)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _hook(self, part: str, module: nn.Module) -> None:
        """Watch one entrance of the model."""
        mine: list[tuple[Pass, int]] = []

        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            running = passes()
            if any(one.names is self._names for one in running):
                mine.append((running[-1], -1))
                return
            if self._on_begin is not None:
                self._on_begin(self._arguments(module, args, kwargs))
            _patch_given(kwargs.get("past_key_values"))
            running.append(Pass(self._names, self._tracker))
            mine.append((running[-1], perf_counter_ns()))

        def end(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            stop = perf_counter_ns()
            if not mine:
                return
            one, start = mine.pop()
            if start < 0:
                return
            running = passes()
            if one in running:
                del running[running.index(one) :]
            if result is not None:
                arguments = self._arguments(module, args, kwargs)
                elapsed = stop - start - one.own_ns
                self._finish(part, module, one, arguments, result, elapsed)

        handles = (
            module.register_forward_pre_hook(begin, with_kwargs=True, prepend=True),
            module.register_forward_hook(end, with_kwargs=True, always_call=True),
        )
        self._undo += [handle.remove for handle in handles]

    def _arguments(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Mapping[str, object]:
        """All arguments by name."""
        if not args:
            return kwargs
        signature = self._signatures.get(id(module))
        if signature is None:
            signature = self._signatures[id(module)] = inspect.signature(module.forward)
        names = [name for name in signature.parameters if name not in kwargs]
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def _finish(
        self,
        part: str,
        module: nn.Module,
        one: Pass,
        arguments: Mapping[str, object],
        result: Any,
        elapsed_ns: int,
    ) -> None:
        """Make the Forward, and hand it over."""
        start = perf_counter_ns()
        tokens = arguments.get("input_ids")
        if not isinstance(tokens, Tensor):
            tokens = next(
                (
                    value
                    for value in arguments.values()
                    if isinstance(value, Tensor) and value.dim() == 2 and _whole(value)
                ),
                None,
            )
        shape = _shape(tokens, arguments)
        changes, self._tracker.changes = tuple(self._tracker.changes), []
        updates = tuple(self._update(raw, arguments) for raw in one.updates)
        forward = Forward(
            number=self.num_forwards,
            model=module,
            part=part,
            arguments=arguments,
            tokens=tokens,
            sequences=shape[0],
            new=shape[1],
            calls=self._calls(one, part),
            updates=updates,
            changes=changes,
            recurrent=tuple(one.recurrent),
            logits=_logits(result),
            elapsed_ns=elapsed_ns,
            own_ns=one.own_ns + perf_counter_ns() - start,
        )
        self.num_forwards += 1
        self._on_forward(forward)

    def _update(self, raw: RawUpdate, arguments: Mapping[str, object]) -> CacheUpdate:
        given = arguments.get("past_key_values")
        cross = getattr(given, "cross_attention_cache", None)
        part = "cross" if raw.cache is cross else "self"
        return finished(raw, self._tracker.serial(raw.cache), part)

    def _calls(self, one: Pass, part: str) -> tuple[AttentionCall, ...]:
        """The raw calls, read; calls of one module are numbered."""
        counts: dict[int, int] = {}
        masks = MaskReader()
        found = []
        for module, args, kwargs, output in one.calls:
            key = id(module)
            number = counts.get(key, 0)
            counts[key] = number + 1
            known = self._facts.get(key)
            if known is None:
                known = facts(module, self._names[key], len(self._facts), encoder=part == "encoder")
                self._facts[key] = known
            call = read(known, (args, kwargs, output), number, masks)
            if call is not None:
                found.append(call)
        return tuple(found)


def _entrances(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model, and the encoder that generate calls on its own."""
    found = [("model", model)]
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
        encoder = model.get_encoder()
        if isinstance(encoder, nn.Module) and encoder is not model:
            found.append(("encoder", encoder))
    return found


def _patch_given(cache: object) -> None:
    """A cache class that was made after the patches, or is no subclass of `Cache`."""
    if cache is None or isinstance(cache, tuple | list):
        return
    for part in ("self_attention_cache", "cross_attention_cache"):
        _patch_given(getattr(cache, part, None))
    if not hasattr(cache, "self_attention_cache"):
        for owner in type(cache).__mro__:
            if owner is not object:
                patch_class(CACHES, owner)


def _whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype != torch.bool


def _shape(tokens: Tensor | None, arguments: Mapping[str, object]) -> tuple[int, int]:
    """(sequences, new) of what came in."""
    if tokens is not None:
        return (1, tokens.shape[0]) if tokens.dim() == 1 else (tokens.shape[0], tokens.shape[1])
    for value in arguments.values():
        if isinstance(value, Tensor) and value.dim() == 3:
            return value.shape[0], value.shape[1]
    return 1, 0


def _logits(result: Any) -> Tensor | None:
    """The logits among what a model returned."""
    if isinstance(result, Tensor):
        return result
    found = getattr(result, "logits", None)
    if found is None and isinstance(result, tuple):
        found = next(
            (part for part in result if isinstance(part, Tensor) and part.dim() == 3), None
        )
    return found if isinstance(found, Tensor) and found.dim() == 3 else None
