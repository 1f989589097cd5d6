"""Where the tokens of a forward stand in their sequences; padding gets negative positions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kvtrace.record.capture.forward import Forward

Positions = tuple[tuple[int, ...], ...]

_OF_PADDING = 1
"""The largest position id that padding is given."""


def positions(forward: Forward, at: tuple[int, ...] | None = None) -> Positions:
    """[sequences][new]: position ids where given, else counted; left padding counts up to -1.

    Args:
        forward: It.
        at: Position of its first token per sequence, where its rows tell it.
    """
    new, sequences = forward.new, forward.sequences
    mask = forward.argument(mask_name(forward.arguments))
    start, pads = _past(forward), [0] * sequences
    if mask is not None and mask.dim() == 2 and mask.shape[1] >= new:
        start = _before(mask, new, start)
        pads = _left_padding(mask, sequences)
    given = _given(forward)
    blind = _blind(forward, given)
    if any(blind):
        pads = [start + hidden if hidden else 0 for hidden in blind]
    elif start == 0 and given is not None and not any(pads):
        pads = [_padding_told(given[row if len(given) > 1 else 0]) for row in range(sequences)]
    if at is not None and given is None and len(at) == sequences:
        return tuple(tuple(range(first, first + new)) for first in at)
    out = []
    for sequence, pad in enumerate(pads):
        counted = range(start - pad, start - pad + new)
        if given is None:
            out.append(tuple(counted))
            continue
        told = given[sequence if len(given) > 1 else 0]
        if pad <= start:
            out.append(tuple(told))
        else:
            out.append(tuple(n if n < 0 else t for n, t in zip(counted, told, strict=True)))
    return tuple(out)


def mask_name(arguments: Mapping[str, object]) -> str:
    """The argument that hides tokens of this text: what a decoder is given has another one."""
    given_encoder = "encoder_outputs" in arguments or "decoder_input_ids" in arguments
    return "decoder_attention_mask" if given_encoder else "attention_mask"


def _before(mask: Tensor, new: int, held: int) -> int:
    """Tokens before these by a mask, which may be as wide as all that a buffer can hold."""
    ends = held + new
    wider = mask.shape[1] > ends and not bool(mask[:, ends:].any())
    return held if wider else mask.shape[1] - new


def _past(forward: Forward) -> int:
    """Rows before this forward, by what the first updated layer says it has seen."""
    if forward.batch is not None:
        return forward.batch.seq - forward.new
    for update in forward.updates:
        if update.part == "self":
            return max(0, update.length - update.new_keys.shape[2])
    return 0


def _left_padding(mask: Tensor, sequences: int) -> list[int]:
    """Hidden tokens at the left, per sequence."""
    column = mask[:, 0].tolist()
    if all(column) or len(column) != sequences:
        return [0] * sequences
    # of a prompt that is fed in chunks, the first may hold nothing but padding
    found: list[int] = (mask != 0).int().cumsum(dim=1).eq(0).sum(dim=1).tolist()
    return found


def _blind(forward: Forward, given: list[list[int]] | None) -> list[int]:
    """Queries at the left that a whole mask shows nothing, per sequence: padding has such.

    Those that follow in a chunk of a prompt see none but each other. A single token that goes on
    with a text is not asked about.
    """
    if forward.new < 2 and given is not None and min(row[0] for row in given) > _OF_PADDING:
        return []
    masks = forward.arguments.get("attention_mask")
    masks = next(iter(masks.values()), None) if isinstance(masks, dict) else masks
    whole = (forward.sequences, 1, forward.new)
    if not isinstance(masks, Tensor) or masks.shape[:-1] != whole:
        return []
    if masks.is_floating_point():
        masks = masks > torch.finfo(masks.dtype).min / 2
    seen = (masks[:, 0] != 0).sum(-1)
    found: list[int] = seen.cumsum(-1).eq(0).sum(-1).tolist()
    most = torch.arange(1, forward.new + 1, device=seen.device)
    return [
        n if bool((row <= (most - n).clamp(min=0)).all()) else 0
        for row, n in zip(seen, found, strict=True)
    ]


def _padding_told(ids: list[int]) -> int:
    """Hidden tokens at the left where only position ids tell: as in 1, 1, 1, 0, 1, 2."""
    first = len(ids) - 1
    while first > 0 and ids[first] - ids[first - 1] == 1:
        first -= 1
    hidden = ids[:first]
    return first if hidden and ids[first] == 0 and hidden in ([0] * first, [1] * first) else 0


def _given(forward: Forward) -> list[list[int]] | None:
    """Position ids by row of the batch (or one row for all); None without usable ones."""
    ids = forward.argument("position_ids")
    if ids is None or ids.is_floating_point():
        return None
    if ids.dim() == 1:
        ids = ids[None]
    fits = ids.dim() == 2 and ids.shape[1] == forward.new and ids.shape[0] in (1, forward.sequences)
    if not fits:
        return None
    found: list[list[int]] = ids.tolist()
    return found
