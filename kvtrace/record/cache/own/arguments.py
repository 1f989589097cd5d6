"""What the arguments of a forward tell of its rows: its start, its padding, what is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from kvtrace.record.capture.tokens.positions import mask_name

_POSITION = re.compile(r"(^|_)(pos|position|positions|start|offset|past_len|past_length)(_|s?$)")

_HELD = re.compile(r"(^|_)(seq_?|cache_?|past_?|kv_?|context_?)?(len|lens|length|lengths|seqlens)$")


def filled(value: object, depth: int = 3) -> bool:
    """Whether a container holds tensors; anything else that is neither tensor nor None does."""
    if isinstance(value, Mapping):
        return filled(list(value.values()), depth)
    if isinstance(value, list | tuple):
        return any(isinstance(one, Tensor) or (depth and filled(one, depth - 1)) for one in value)
    return value is not None and not isinstance(value, Tensor)


def extends(tokens: Tensor, before: Tensor) -> bool:
    """Whether every sequence begins with what it was before, and goes on."""
    if tokens.dim() != 2 or before.dim() != 2:
        return False
    count = before.shape[1]
    longer = tokens.shape[0] == before.shape[0] and tokens.shape[1] > count > 0
    return longer and torch.equal(tokens[:, :count].to(before.device), before)


def start(arguments: Mapping[str, object], tokens: Tensor | None, new: int) -> int | None:
    """Position of the first token as an argument says it; None where none does."""
    mask = arguments.get(mask_name(arguments))
    if isinstance(mask, Tensor) and mask.dim() == 2 and tokens is not None:
        whole = mask.shape[0] == tokens.shape[0] and not mask.is_floating_point()
        if whole and mask.shape[1] > new:
            return int(mask.shape[1]) - new
    for name, value in arguments.items():
        if value is tokens or not _POSITION.search(name):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        if isinstance(value, Tensor) and not value.is_floating_point() and value.numel():
            fits = value.dim() == 0 or value.shape[-1] in (1, new)
            first = int(value.flatten()[0]) if fits else -1
            if first >= 0:
                return first
    return None


def held(arguments: Mapping[str, object], sequences: int) -> tuple[int, ...] | None:
    """Rows that each sequence has, where an argument says another number for one than for another.

    Whether those of this step are among them is not told.
    """
    for name, value in arguments.items():
        if sequences < 2 or not (_HELD.search(name) or _POSITION.search(name)):
            continue
        whole = isinstance(value, Tensor) and not value.is_floating_point() and not value.is_meta
        if isinstance(value, Tensor) and whole and value.shape in ((sequences,), (sequences, 1)):
            value = value.flatten().tolist()
        if isinstance(value, list | tuple) and len(value) == sequences:
            counts = tuple(one for one in value if type(one) is int and one >= 0)
            if len(counts) == sequences and len(set(counts)) > 1:
                return counts
    return None


def padding(arguments: Mapping[str, object]) -> tuple[int, ...] | None:
    """Hidden tokens at the left, per sequence, as an attention mask says it."""
    mask = arguments.get(mask_name(arguments))
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    shown = mask != 0
    return tuple(int(n) for n in torch.where(shown.any(1), shown.int().argmax(1), 0).tolist())
