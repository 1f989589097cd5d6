"""A batch whose sequences were texts of their own before: prompts that ran apart, put together.

Each sequence then holds all rows of another text, in place; a shorter one has padding before them,
or behind. Rows that somebody moved otherwise in order to join them are not looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.record.flow.rows.slots import UNWRITTEN, Flags, equal_slots
from kvtrace.record.flow.rows.texts import Text
from kvtrace.record.match import Digests


class _Part(Struct, frozen=True):
    """One sequence of a remembered text.

    Attributes:
        text: It.
        sequence: Which.
        first: Slot that its first row has in the batch.
        count: Slots of it, but for filling behind its tokens.
    """

    text: Text
    sequence: int
    first: int
    count: int

    def laid(self, rows: NDArray[Any], seq: int, fill: int) -> NDArray[Any]:
        """What is remembered of its rows, in the slots of the batch.

        Args:
            rows: [.., slots].
            seq: Slots of the batch.
            fill: Stands where there is padding.
        """
        behind = seq - self.first - self.count
        around = [(0, 0)] * (rows.ndim - 1) + [(self.first, behind)]
        return np.pad(rows[..., : self.count], around, constant_values=fill)


def joined(
    texts: Sequence[Text], now: Digests, part: int | None, new: int, seen: Flags
) -> Text | None:
    """The text that several remembered ones are together; None where no batch was joined.

    Args:
        texts: Remembered, the newest last.
        now: Digests of the rows, of a part of them where one is given, [2, sequences, seq].
        part: It.
        new: Query rows per sequence.
        seen: Slots that some query sees, [seq].
    """
    _, sequences, seq = now.shape
    old = seq - new
    if sequences < 2 or old < 1 or not seen.all():
        return None
    # where a batch did not grow, rows of another text are no joining but somebody's mistake
    smaller = (text for text in reversed(texts) if len(text.cells) < sequences)
    fitting = [text for text in smaller if text.cells.shape[1] <= old and text.whole]
    if len(fitting) < 2:
        return None
    found = [_part(fitting, now[:, b, :old], part) for b in range(sequences)]
    parts = [one for one in found if one is not None]
    if len(parts) < sequences or len({id(one.text) for one in parts}) < 2:
        return None
    if len({one.text.parts is None for one in parts}) > 1:
        return None
    return _together(parts, old)


def _part(texts: Sequence[Text], rows: Digests, part: int | None) -> _Part | None:
    """The longest sequence, the newest of these, whose rows are all there."""
    for text in sorted(texts, key=lambda one: -one.cells.shape[1]):
        then = text.looked_at(part)
        for sequence in range(then.shape[1]):
            count = _count(text, sequence)
            for first in dict.fromkeys((rows.shape[-1] - count, 0)):
                here = rows[:, first : first + count]
                if equal_slots(here, then[:, sequence, :count]).all():
                    return _Part(text, sequence, first, count)
    return None


def _count(text: Text, sequence: int) -> int:
    """Slots of a sequence, but for filling behind its tokens, which are written over."""
    end, places = int(text.ends[sequence]), text.positions[sequence]
    plain = 0 < end < len(places) and np.array_equal(places[:end], np.arange(end))
    return end if plain else len(places)


def _together(parts: Sequence[_Part], seq: int) -> Text:
    """One text of these sequences; it was last seen when the newest of them was."""
    turns = [
        one.laid(one.text.parts[..., one.sequence, :], seq, 0)
        for one in parts
        if one.text.parts is not None
    ]
    return Text(
        np.stack([one.laid(one.text.digests[:, one.sequence], seq, 0) for one in parts], 1),
        np.stack(turns, -2) if turns else None,
        np.stack([one.laid(one.text.lengths[one.sequence], seq, 0) for one in parts]),
        np.stack([one.laid(one.text.cells[one.sequence], seq, UNWRITTEN) for one in parts]),
        np.stack([one.laid(one.text.positions[one.sequence], seq, 0) for one in parts]),
        np.array([one.text.ends[one.sequence] for one in parts]),
        max(one.text.number for one in parts),
        mixed=any(one.text.mixed for one in parts),
        padded=any(one.count < seq for one in parts),
    )
