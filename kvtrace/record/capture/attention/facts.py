"""What an attention module says of itself once, for all its calls: path, layer, window, sinks."""

from __future__ import annotations

import inspect
import re

from msgspec import Struct
from torch import Tensor, nn

from kvtrace.configs import setting
from kvtrace.record.written import file_of


class ModuleFacts(Struct, frozen=True):
    """What is true of an attention module in every call."""

    path: str
    layer: int
    kind: str
    causal: bool
    window: int | None
    sinks: Tensor | None
    code: str


def facts(module: nn.Module, path: str, order: int, kind: str = "self") -> ModuleFacts:
    """Read them off the module and its config.

    Args:
        module: It.
        path: Where it is in the model.
        order: Its layer if neither it nor its path says.
        kind: "self", "cross" or "encoder", as its place says; it may know better.
    """
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
        layer = int(number[1]) if number else order
    cross = bool(getattr(module, "is_cross_attention", False))
    sinks = getattr(module, "sinks", None)
    return ModuleFacts(
        path,
        layer,
        "cross" if cross else kind,
        bool(getattr(module, "is_causal", True)),
        _window(module, layer),
        sinks if isinstance(sinks, Tensor) else None,
        _code(module),
    )


def _window(module: nn.Module, layer: int) -> int | None:
    """The window a module declares; a config's window counts only for layers it names sliding."""
    own = getattr(module, "sliding_window", None)
    if own is not None or hasattr(module, "sliding_window"):
        return own if isinstance(own, int) and not isinstance(own, bool) else None
    config = getattr(module, "config", None)
    window = setting(config, "sliding_window")
    types = setting(config, "layer_types")
    named = isinstance(types, list) and layer < len(types) and types[layer] == "sliding_attention"
    return window if isinstance(window, int) and named else None


def _code(module: nn.Module) -> str:
    """Where its forward is written: "file.py:line"."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return f"{file_of(code)}:{code.co_firstlineno}" if code else ""
