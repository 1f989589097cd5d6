"""Tables of queries and keys that a caller hands a model, made to fit more tokens.

Each query sees the keys from a first one on, or those of a window, up to its own; what padding at
the left sees is the caller's. Of a bias that tells keys apart otherwise nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from msgspec import Struct
from torch import Tensor

from kvtrace.record.capture.attention.masks import HIDDEN_BELOW


class Made(NamedTuple):
    """A path that a table is made for.

    Attributes:
        row: Sequence of the first tokens that it goes on with.
        padding: Tokens at its left that nobody sees; None: as many as the table says.
    """

    row: int
    padding: int | None


class Seen(Struct, frozen=True):
    """What one table shows.

    Attributes:
        padding: Tokens at the left that no other one sees.
        window: Keys that a query sees at most; None: as many as there are.
        shown, hidden: What stands in it for either, without axes.
    """

    padding: int
    window: int | None
    shown: Tensor
    hidden: Tensor

    def whole(self, rows: int, keys: int, padding: int) -> Tensor:
        """The same for more tokens, [rows, keys]; padding sees itself.

        Args:
            rows: Tokens.
            keys: Columns, as many or more.
            padding: Of these tokens.
        """
        seen = _expected(rows, keys, padding, self.window, self.shown.device)
        return torch.where(seen, self.shown, self.hidden)


def seen_in(mask: Tensor, new: int) -> tuple[Seen, ...] | None:
    """What each of its tables shows, in the order of the axes before; None: it holds no such ones.

    Args:
        mask: [.., new, keys].
        new: Tokens.
    """
    if new < 2 or mask.dim() < 2 or mask.shape[-2] != new or mask.shape[-1] < new:
        return None
    found: list[Seen] = []
    for table in mask.reshape(-1, *mask.shape[-2:]):
        one = _seen(table, new)
        if one is None:
            return None
        found.append(one)
    windows = {one.window for one in found} - {None}
    return tuple(found) if found and len(windows) < 2 else None


def grown(
    mask: Tensor, seen: Sequence[Seen], rows: int, paths: Sequence[Made], sequences: int
) -> Tensor | None:
    """The tables of whole paths; None: it has no place for what these hide.

    Args:
        mask: Of the first tokens, [.., new, keys].
        seen: What it shows.
        rows: Tokens of the longest path.
        paths: What they are made for.
        sequences: Of the first tokens.
    """
    new, width = mask.shape[-2:]
    keys = rows if width == new else width
    axes = list(mask.shape[:-2])
    each = len(seen) // sequences if axes and axes[0] % sequences == 0 else 0
    own = [one.padding for one in seen]
    alike = len(set(own)) == 1 and all(one.padding in (None, own[0]) for one in paths)
    pairs: list[tuple[int, int | None]] = [(number, None) for number in range(len(own))]
    if axes and axes[0] == 1 and len(paths) > 1 and not alike:
        pairs = [(one, path.padding) for path in paths for one in range(len(seen))]
        axes[0] = len(paths)
    elif paths and each and (len(axes) > 1 or axes[0] == sequences or not alike):
        pairs = [
            (path.row % sequences * each + one, path.padding)
            for path in paths
            for one in range(each)
        ]
        axes[0] = len(paths) * axes[0] // sequences
    elif paths and not alike:
        return None
    tables = mask.reshape(-1, new, width)
    window = next((one.window for one in seen if one.window is not None), None)
    made = [
        _one(tables[n], seen[n], window, (rows, keys, own[n] if padding is None else padding))
        for n, padding in pairs
    ]
    return torch.stack(made).reshape(*axes, rows, keys)


def _one(table: Tensor, seen: Seen, window: int | None, size: tuple[int, int, int]) -> Tensor:
    """One table; where its padding is the same, what padding sees is the caller's."""
    rows, keys, padding = size
    # a text shorter than the window does not show it
    whole = Seen(padding, window, seen.shown, seen.hidden).whole(rows, keys, padding)
    if padding == seen.padding:
        first = min(padding, rows)
        whole[:first, : min(keys, table.shape[1])] = table[:first, :keys]
    return whole


def _seen(table: Tensor, new: int) -> Seen | None:
    """What a table shows, [new, keys]; None: something else."""
    shown = table[-1, new - 1]
    sees = table == shown
    counts = sees.sum(-1)
    count = int(counts[-1])
    # a last token alone behind padding sees as much as a filler that sees itself
    full = count > 1 and count == int(counts[-2])
    padding = new - count
    if full:
        other = (counts != count).nonzero()
        padding = (int(other[-1]) + 1 if len(other) else 0) - count + 1
    window = count if full else None
    if padding < 0:
        return None
    expected = _expected(new, table.shape[1], padding, window, table.device)
    if not bool((sees == expected)[padding:].all()):
        return None
    others = table[padding:][~expected[padding:]]
    if not len(others):
        return None
    hidden = others[-1] if padding == new - 1 else table[-2, new - 1]
    same = (others == hidden) | ((others <= HIDDEN_BELOW) & (hidden <= HIDDEN_BELOW))
    return Seen(padding, window, shown, hidden) if bool(same.all()) else None


def _expected(
    rows: int, keys: int, padding: int, window: int | None, device: torch.device
) -> Tensor:
    """Who sees whom, [rows, keys]; padding sees itself."""
    places, own = torch.arange(keys, device=device), torch.arange(rows, device=device)[:, None]
    seen = (places <= own) & (places >= padding)
    if window is not None:
        seen &= places > own - window
    return seen | ((own < padding) & (places == own))
