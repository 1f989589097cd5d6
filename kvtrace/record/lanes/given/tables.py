"""Tables of who sees whom that a caller gave with the first tokens of a text, for the other lane.

A prefix whose tokens all see each other, or documents packed into one row: that is the text's, not
the cache's, so that the same tokens see each other without a cache. Later ones see all before them
but padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kvtrace.record.capture.attention.masks import HIDDEN_BELOW
from kvtrace.record.capture.forward import Forward

TABLE = "attention_mask of four axes"
"""The table of a text, [sequences or 1, heads or 1, new, new], among what is kept of it."""

ALONE = "attention_mask of four axes, beside windows"
"""The same, where it stands for no later rows: windows hide some, each layer's its own."""


def table_of(forward: Forward) -> Mapping[str, Tensor]:
    """The table that the first tokens of a text were given; nothing where it is the causal one.

    A causal one that leaves out the windows of the layers asks for nothing of its own.

    Args:
        forward: The text's first, without rows from before.
    """
    given = forward.argument("attention_mask")
    if given is None or given.dim() != 4 or given.shape[2] != forward.new > 1:
        return {}
    table = given[..., : forward.new]
    shown = table > HIDDEN_BELOW if table.is_floating_point() else table != 0
    windows = {call.window for call in forward.calls if call.window is not None}
    if any(torch.equal(shown, _usual(shown, window)) for window in (forward.new, *windows)):
        return {}
    return {ALONE if windows else TABLE: table.detach().clone()}


def _usual(shown: Tensor, window: int) -> Tensor:
    """The causal table of a window, without columns that nobody sees: those are padding."""
    seen = shown.any(dim=-2, keepdim=True)
    return torch.ones_like(shown).tril().triu(1 - window) & seen


def given_table(extra: Mapping[str, object]) -> Tensor | None:
    """The table among what goes with some paths."""
    found = extra.get(TABLE, extra.get(ALONE))
    return found if isinstance(found, Tensor) else None


def without(extra: Mapping[str, object]) -> dict[str, object]:
    """What else goes with some paths, by the names of arguments."""
    return {name: value for name, value in extra.items() if name not in (TABLE, ALONE)}


def too_short(extra: Mapping[str, object], rows: int) -> str:
    """Why the table of some paths says nothing of their last rows; empty: it does.

    Args:
        extra: What goes with the paths.
        rows: Tokens of the longest one.
    """
    alone = extra.get(ALONE)
    if not isinstance(alone, Tensor) or rows <= alone.shape[-1]:
        return ""
    return (
        "its first tokens were given a table of who sees whom, and layers have windows: what later "
        "ones may see of them is not known"
    )


def longer(table: Tensor, rows: int, padding: Sequence[int]) -> Tensor:
    """The table of whole paths, [paths, heads or 1, rows, rows], in the table's own dtype.

    Args:
        table: Of the first tokens, [paths or 1, heads or 1, new, new].
        rows: Tokens of the longest path.
        padding: Of each path, tokens at the left that nobody sees.
    """
    new, device = min(rows, table.shape[-1]), table.device
    places = torch.arange(rows, device=device)
    starts = torch.tensor(list(padding), device=device)
    shown = (places[None] <= places[:, None]) & (places >= starts[:, None])[:, None]
    whole = shown[:, None].expand(-1, table.shape[1], -1, -1).to(table.dtype)
    if table.is_floating_point():
        hidden = torch.finfo(table.dtype).min
        whole = torch.zeros_like(whole).masked_fill(~shown[:, None], hidden)
    whole = whole.clone()
    whole[..., :new, :new] = table[..., :new, :new]
    return whole
