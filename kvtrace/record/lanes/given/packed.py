"""Texts that are packed in one row of tokens, as engines that batch do: told by who sees whom.

Either a mask hides each text's rows from the others, or their attention is called once for each.
What sees no more of the row than that may be one text in blocks, too: so only steps are asked that
go on with several, each over older rows of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import torch
from msgspec import Struct
from torch import Tensor

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Forward


class Texts(Struct, frozen=True):
    """The texts of a row.

    Attributes:
        tokens: Of each in this step.
        go_on: Several of them have older rows.
    """

    tokens: tuple[int, ...]
    go_on: bool


def packed(forward: Forward) -> Texts | None:
    """The texts in a forward of one row, where there are several; None also where none can tell."""
    first = next((call for call in forward.calls if call.kind == "self"), None)
    if first is None or forward.sequences != 1 or forward.tokens is None:
        return None
    tokens = forward.tokens.shape[-1]
    if tokens < 2 or first.queries.shape[0] != 1:
        return None
    calls = [one for one in forward.calls if one.kind == "self" and one.module == first.module]
    if len(calls) > 1:
        return _by_calls(calls, tokens)
    return _by_mask(first) if first.queries.shape[2] == tokens else None


def _by_calls(calls: Sequence[AttentionCall], tokens: int) -> Texts | None:
    """Each call has queries and rows of its own, and none has what another begins with."""
    new = tuple(one.queries.shape[2] for one in calls)
    keys = [one.keys for one in calls]
    if sum(new) != tokens or any(one.shape[:2] != keys[0].shape[:2] for one in keys):
        return None
    for mine, theirs in combinations(keys, 2):
        both = min(mine.shape[2], theirs.shape[2])
        if torch.equal(mine[:, :, :both], theirs[:, :, :both]):
            return None
    return _texts(new, [one.shape[2] for one in keys])


def _by_mask(call: AttentionCall) -> Texts | None:
    """The mask falls into blocks of queries, none of which sees a row of another's."""
    if call.causal or call.visible is None:
        return None
    new, seq = call.queries.shape[2], call.keys.shape[2]
    shown = call.visible.expand(*call.visible.shape[:-2], new, seq).reshape(-1, new, seq)[0]
    begins = _begins(shown)
    if len(begins) < 3:
        return None
    rows = torch.stack([shown[one:other].any(0) for one, other in pairwise(begins)])
    if bool((rows.sum(0) > 1).any()) or bool((rows.sum(1) < 2).any()):  # padding sees itself alone
        return None
    return _texts([other - one for one, other in pairwise(begins)], rows.sum(1).tolist())


def _begins(shown: Tensor) -> list[int]:
    """Where queries begin that share no row with the one before, and the end, [new, seq]."""
    other = ~(shown[1:] & shown[:-1]).any(-1)
    return [0, *(other.nonzero().flatten() + 1).tolist(), len(shown)]


def _texts(new: Sequence[int], rows: Sequence[int]) -> Texts:
    older = sum(held > own for own, held in zip(new, rows, strict=True))
    return Texts(tuple(new), older > 1)
