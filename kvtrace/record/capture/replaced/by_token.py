"""Where the tokens are in a tensor of one row, or several, a token: found by the sizes alone."""

from __future__ import annotations

from torch import Tensor


def by_token(found: Tensor, sequences: int, new: int) -> Tensor | None:
    """Tokens first: [sequences, new, parts, k] of [..., k]; None where no axis is theirs."""
    axis = _axis(tuple(found.shape[:-1]), sequences, new)
    if axis is None:
        return None
    if axis > 0:
        found = found.reshape(sequences, *_inner(found, sequences)).movedim(axis, 1)
    return found.reshape(sequences, new, -1, found.shape[-1])


def in_layout(found: Tensor, like: Tensor, sequences: int, new: int) -> Tensor:
    """The way back from `by_token`."""
    axis = _axis(tuple(like.shape[:-1]), sequences, new)
    if axis is None or axis == 0:
        return found.reshape(like.shape)
    inner = list(_inner(like, sequences))
    del inner[axis - 1]
    return found.reshape(sequences, new, *inner).movedim(1, axis).reshape(like.shape)


def _axis(lead: tuple[int, ...], sequences: int, new: int) -> int | None:
    """Where the tokens are, counted behind an axis of sequences; 0: both are the first axis."""
    if not lead or lead[0] == sequences * new:
        return 0 if lead or sequences * new == 1 else None
    inner = lead[1:] if lead[0] == sequences else lead
    if new not in inner or (lead[0] != sequences and sequences != 1):
        return None
    return inner.index(new) + 1


def _inner(found: Tensor, sequences: int) -> tuple[int, ...]:
    """The axes behind that of sequences, which is not there where there is but one."""
    shape = tuple(found.shape)
    return shape[1:] if shape[0] == sequences else shape
