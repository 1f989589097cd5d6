"""What the attention calls of a forward show of it: its heads, its mask, its ids and rows."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

import torch
from msgspec.structs import replace

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Forward
from kvtrace.record.capture.tokens.inputs import tokens_of
from kvtrace.record.lanes.given.extend import MASK
from kvtrace.record.parts import flat


def trimmed(call: AttentionCall, rows: int) -> AttentionCall:
    """A call without the slots of a larger buffer that no query saw.

    Args:
        call: Its keys may have more rows than there are tokens.
        rows: Tokens.
    """
    seq = call.keys.shape[2]
    if seq <= rows or call.visible is None or call.kind != "self":
        return call
    seen = call.visible.expand(*call.visible.shape[:-1], seq).reshape(-1, seq).any(dim=0)
    live = seen.nonzero().flatten()
    if len(live) != rows:
        return call
    return replace(
        call,
        keys=call.keys[:, :, live],
        values=call.values[:, :, live],
        visible=call.visible.expand(*call.visible.shape[:-1], seq)[..., live],
        bias=None if call.bias is None else call.bias.expand(*call.bias.shape[:-1], seq)[..., live],
    )


def is_causal(call: AttentionCall) -> bool:
    """Whether no query sees a key that is newer than itself, as far as the mask says."""
    new, seq = call.queries.shape[2], call.keys.shape[2]
    if call.causal or new < 2:
        return True
    if call.visible is None:
        return False
    table = call.visible.expand(*call.visible.shape[:-2], new, seq).reshape(-1, new, seq)
    first = bool(table[:, 0].sum(dim=-1).le(max(1, seq - new + 1)).all())
    return first and not bool(table[:, 0].eq(table[:, -1]).all())


def sees_alike(call: AttentionCall) -> bool:
    """Whether all queries see the same keys, as far as the mask says."""
    new, seq = call.queries.shape[2], call.keys.shape[2]
    if call.causal or call.visible is None:
        return not call.causal
    table = call.visible.expand(*call.visible.shape[:-2], new, seq)
    return bool(table.eq(table[..., :1, :]).all())


def heads_of(call: AttentionCall) -> tuple[int, int]:
    """How many query heads a call has, and their size."""
    return call.queries.shape[1], call.queries.shape[3]


def renamed(
    calls: Sequence[AttentionCall],
    order: Sequence[tuple[str, int]],
    heads: Sequence[tuple[int, int]],
) -> bool:
    """Whether these are a first forward's calls, in order, each by another name.

    Args:
        calls: As many as the first forward's.
        order: Their sites, (module, call).
        heads: As `heads_of` tells them.
    """
    known = {module for module, _ in order}
    same = tuple(heads_of(call) for call in calls) == tuple(heads)
    return same and not any(call.module in known for call in calls)


def crossing(call: AttentionCall, places: Container[tuple[str, int]]) -> AttentionCall:
    """The call as a first forward showed it: two texts of one length look like one.

    Args:
        call: Of a forward over a whole path.
        places: Modules and numbers of calls that attended to another text in the first forward.
    """
    crosses = call.kind == "self" and (call.module, call.call) in places
    return replace(call, kind="cross") if crosses else call


def any_of(dtype: torch.dtype, calls: Sequence[AttentionCall]) -> bool:
    """Whether any of these was computed in a dtype."""
    return any(dtype in (one.queries.dtype, one.keys.dtype, one.values.dtype) for one in calls)


def ids_each(forward: Forward) -> int:
    """Ids for one position, as the codebooks of music models."""
    given, taken = tokens_of(forward.arguments), forward.tokens
    if given is None or taken is None or not taken.numel():
        return 1
    if given.dim() < 3 and given.shape[-1] != taken.shape[-1]:
        return 1
    return given.numel() // taken.numel()


def rows_beyond_ids(forward: Forward) -> int:
    """Rows that were made of something else than ids, as of an image before a text; 0: none."""
    ids = tokens_of(forward.arguments)
    if forward.tokens is not None or ids is None or ids.dim() != 2:
        return 0
    return max(0, forward.new - ids.shape[1]) if ids.shape[0] == forward.sequences else 0


def led_by(forward: Forward, *, first: bool) -> torch.Tensor | None:
    """The ids of a text that begins with more rows than ids, [sequences, ids]; None: there is none.

    What a mask hides in a later text is not known of its rows.

    Args:
        forward: It begins with.
        first: Its call is the one that is made again.
    """
    ids = tokens_of(forward.arguments)
    if ids is None or not rows_beyond_ids(forward):
        return None
    masks = [one for name, one in forward.arguments.items() if MASK.search(name)]
    hides = any(isinstance(one, torch.Tensor) and bool((one == 0).any()) for one in masks)
    goes_on = any(one.kind == "self" and one.keys.shape[2] > forward.new for one in forward.calls)
    return None if not first and (hides or goes_on) else ids.detach().clone()


def branches(forward: Forward) -> bool:
    """Whether tokens stand side by side at one place of a text, hidden from each other."""
    call = next((one for one in forward.calls if one.kind == "self"), None)
    if forward.new < 2 or call is None or call.visible is None:
        return False
    if call.keys.shape[2] <= forward.new or call.visible.shape[-2] not in (1, forward.new):
        return False
    shown = call.visible.expand(*call.visible.shape[:-2], forward.new, call.keys.shape[2])
    shown = shown.reshape(-1, *shown.shape[-2:])[0]
    mine = shown[:, _own_rows(forward, call, shown)]
    # padding that is shown itself, so that its softmax is one: no branch goes on from nothing
    mine = mine & ~((shown.sum(-1) == 1) & (mine.sum(0) == 1) & mine.diagonal())[:, None]
    return any(_side_by_side(where, mine) for where in _places(forward, mine))


def _own_rows(forward: Forward, call: AttentionCall, shown: torch.Tensor) -> slice:
    """Where the step's own rows are: the last that anybody sees, in a buffer with room behind."""
    seen = shown.reshape(-1, call.keys.shape[2]).any(0).nonzero().flatten()
    end = int(seen[-1]) + 1 if len(seen) else 0
    return slice(max(0, end - forward.new), max(end, forward.new))


def _places(forward: Forward, mine: torch.Tensor) -> Iterator[torch.Tensor]:
    """Places of the tokens, [new], as arguments may say them: by how many ancestors each has."""
    told = forward.argument("position_ids")
    depth = mine.sum(-1) - 1
    for _, one in flat(forward.arguments):
        if not isinstance(one, torch.Tensor) or one.is_floating_point() or one.is_complex():
            continue
        if one.dim() not in (1, 2) or one.shape[-1] != forward.new or one.dtype == torch.bool:
            continue
        where = one.reshape(-1, forward.new)[0].to(mine.device)
        if one is told or bool((where - where.min() == depth).all()):
            yield where


def _side_by_side(where: torch.Tensor, mine: torch.Tensor) -> bool:
    """Whether tokens of one place are hidden from each other, and not by padding.

    Args:
        where: Their places, [new].
        mine: Which of them each sees, [new, new].
    """
    twice = (where[:, None] == where).tril(-1)
    if not bool(twice.any()):
        return False
    # a token that padding hides is hidden from all that follow
    return bool((mine.diagonal() & twice.any(0)).any()) and not bool(mine[twice].any())
