"""What the engine of continuous batching says: who is in a batch, what was chosen, what was copied.

Its methods are replaced class-wide while somebody holds `ENGINE`; they do what they did. Nothing
is kept on the engine's objects.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from msgspec import Struct
from torch import Tensor

from kvtrace.record.capture.replaced.patch import Make, Method, Patches
from kvtrace.record.capture.running import passes


class Request(NamedTuple):
    """A request as the engine put it into a batch.

    Attributes:
        name: Its id.
        state: The engine's own object for it.
        new: Tokens that it has in the batch.
        prompt: Tokens of its prompt.
        chooses: A token is chosen after them.
    """

    name: str
    state: object
    new: int
    prompt: int
    chooses: bool


class PagedUpdate(NamedTuple):
    """One `update` of a pool in a forward.

    Attributes:
        layer: The cache's own layer index.
        new_keys, new_values: Handed in, [1, kv_heads, new, dim], all requests.
        keys, values: Handed back, [1, kv_heads, seq, dim], one request after the other.
    """

    layer: int
    new_keys: Tensor
    new_values: Tensor
    keys: Tensor
    values: Tensor


Copied = Callable[[object, Sequence[int], Sequence[int]], None]
Chosen = Callable[[object, int], None]


class Listener(Struct, frozen=True, eq=False):
    """Who wants to hear of it.

    Attributes:
        copied: Told of blocks that were copied: (allocator, from, to).
        chosen: Told of a token that was chosen: (the engine's object for a request, token).
    """

    copied: Copied
    chosen: Chosen


_batches: weakref.WeakKeyDictionary[Any, tuple[Request, ...]] = weakref.WeakKeyDictionary()
_listeners: list[Listener] = []


def batch_of(pool: object) -> tuple[Request, ...]:
    """Who is in the batch that was prepared last for a pool; nobody where that was not seen."""
    return _batches.get(pool, ())


def listen(listener: Listener) -> Callable[[], None]:
    """Tell this listener from now on; returns how to stop."""
    ENGINE.hold()
    _listeners.append(listener)

    def stop() -> None:
        _listeners.remove(listener)
        ENGINE.release()

    return stop


def _update(original: Method) -> Method:
    def update(self: Any, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        out = original(self, key_states, value_states, *args, **kwargs)
        running = passes()
        if running:
            layer = args[0] if args else kwargs.get("layer_idx", 0)
            found = PagedUpdate(layer, key_states, value_states, *out)
            for one in running:
                one.paged.append(found)
        return out

    return update


def _prepare(original: Method) -> Method:
    def prepare(self: Any, requests_in_batch: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, requests_in_batch, *args, **kwargs)
        _batches[self.cache] = tuple(_request(one) for one in requests_in_batch)
        return result

    return prepare


def _request(one: Any) -> Request:
    state = one.state
    name = str(state.request_id)
    prompt = len(state.initial_tokens)
    return Request(name, state, int(one.query_length), prompt, bool(one.has_new_token))


def _complete(original: Method) -> Method:
    def complete(self: Any, token_id: int, *args: Any, **kwargs: Any) -> Any:
        for one in list(_listeners):
            one.chosen(self, int(token_id))
        return original(self, token_id, *args, **kwargs)

    return complete


def _copy(original: Method) -> Method:
    def copy(self: Any, source: Any, dest: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, source, dest, *args, **kwargs)
        for one in list(_listeners):
            one.copied(self, list(source), list(dest))
        return result

    return copy


def _forward_function(original: Method) -> Method:
    def forward_function(self: Any, *args: Any, **kwargs: Any) -> Any:
        function, _ = original(self, *args, **kwargs)
        return function, False  # a graph that is replayed calls no model

    return forward_function


_METHODS: tuple[tuple[str, str, str, Make], ...] = (
    ("cache", "PagedAttentionCache", "update", _update),
    ("requests", "RequestState", "update_and_check_completion", _complete),
    ("input_outputs", "ContinuousBatchingIOs", "prepare_batch_tensors", _prepare),
    ("model_runner", "ModelRunner", "_get_forward_fn", _forward_function),
)


def _install(patches: Patches) -> None:
    for module, owner, name, make in _METHODS:
        found = getattr(_module(module), owner, None)
        if found is not None:
            patches.replace(found, name, make)
    allocators = getattr(_module("cache"), "ATTN_TYPE_TO_ALLOCATOR", {}).values()
    for owner in dict.fromkeys(base for one in allocators for base in one.__mro__):
        if "copy_blocks" in owner.__dict__:
            patches.replace(owner, "copy_blocks", _copy)


def _module(name: str) -> ModuleType | None:
    """A part of the engine; None where this version has none of that name."""
    try:
        return importlib.import_module(f"transformers.generation.continuous_batching.{name}")
    except ImportError:
        return None


ENGINE = Patches(_install, needs="transformers.generation.continuous_batching")
"""The engine's patches; held by every watcher."""
