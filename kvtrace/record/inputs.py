"""What went into a forward and came out of it, as far as names and shapes tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kvtrace.record.calls import AttentionCall


def tokens_of(arguments: Mapping[str, object]) -> Tensor | None:
    """The ids among the arguments: by name, else the first whole numbers of two dimensions."""
    for name in ("input_ids", "decoder_input_ids"):
        found = arguments.get(name)
        if isinstance(found, Tensor):
            return found
    if any(isinstance(arguments.get(f"{part}inputs_embeds"), Tensor) for part in ("", "decoder_")):
        return None
    others = (one for name, one in arguments.items() if "mask" not in name)
    return next(
        (one for one in others if isinstance(one, Tensor) and one.dim() == 2 and _whole(one)), None
    )


def _whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype != torch.bool


def shape_of(tokens: Tensor | None, arguments: Mapping[str, object]) -> tuple[int, int]:
    """(sequences, new) of what came in."""
    if tokens is not None:
        return (1, tokens.shape[0]) if tokens.dim() == 1 else (tokens.shape[0], tokens.shape[1])
    for value in arguments.values():
        if isinstance(value, Tensor) and value.dim() == 3:
            return value.shape[0], value.shape[1]
    return 1, 0


def logits_of(result: Any) -> Tensor | None:
    """The logits among what a model returned."""
    if isinstance(result, Tensor):
        return result
    found = getattr(result, "logits", None)
    if found is None and isinstance(result, tuple):
        found = next(
            (part for part in result if isinstance(part, Tensor) and part.dim() == 3), None
        )
    return found if isinstance(found, Tensor) and found.dim() == 3 else None


def fitted(
    tokens: Tensor | None, shape: tuple[int, int], calls: Sequence[AttentionCall]
) -> tuple[Tensor | None, tuple[int, int]]:
    """Tokens and (sequences, new) as the attention saw them.

    A model may take several ids for one position, as the codebooks of music models, side by side
    in the batch or in a dimension more; the first of each stands for all.
    """
    decoding = [call for call in calls if call.kind != "encoder"] or list(calls)
    if not decoding or any(_size(call) == shape for call in decoding):
        return tokens, shape
    sequences, new = _size(decoding[0])
    if tokens is None:
        return None, (sequences, new)
    rows = tokens.reshape(-1, tokens.shape[-1])
    if rows.shape[1] != new or rows.shape[0] % sequences:
        return None, (sequences, new)
    return rows[:: rows.shape[0] // sequences], (sequences, new)


def _size(call: AttentionCall) -> tuple[int, int]:
    return call.queries.shape[0], call.queries.shape[2]
