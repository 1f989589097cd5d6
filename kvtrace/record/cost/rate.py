"""What a step like the one before costs: most of it the same, the rest in proportion to its rows.

Holds where every product but attention multiplies new rows by weights, and all attention reads the
rows of its own layer: then nothing else can change from one decode step to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from msgspec import Struct

from kvtrace.record.cost import roles
from kvtrace.record.cost.measured import Measured
from kvtrace.trace import Flops


class Rate(Struct, frozen=True):
    """The cost of such steps.

    Attributes:
        modules: That attend, in order.
        sequences, new: Tokens in.
        logits: Shape of the logits.
        cached: FLOPs of one such step; those of its attention are another's.
        each: FLOPs by role for every token of an uncached forward.
        attention: Of scores and mix, for every pair of rows: query heads × features, all calls.
        row: FLOPs of a row of logits.
        every_row: Whether a prefill has logits for all its rows.
    """

    modules: Sequence[str]
    sequences: int
    new: int
    logits: tuple[int, ...] | None
    cached: Flops
    each: Mapping[str, int | Fraction]
    attention: tuple[int, int]
    row: int | Fraction
    every_row: bool

    def fits(self, measured: Measured, *, every_row: bool) -> bool:
        """Whether a forward is such a step."""
        return (
            measured.alike is not None
            and measured.alike[0] is self.modules
            and (measured.sequences, measured.new) == (self.sequences, self.new)
            and measured.logits == self.logits
            and measured.past > 0
            and every_row is self.every_row
        )

    def at(self, seq: int, total: int) -> tuple[Flops, Flops]:
        """FLOPs of a step, and of a forward over all tokens so far, uncached.

        Args:
            seq: Rows that every call attends to.
            total: Tokens so far, per sequence.
        """
        one, each, row, sequences = self.cached, self.each, self.row, self.sequences
        scores, mix = self.attention
        pairs, again, rows = (
            2 * sequences * self.new * seq,
            2 * sequences * total**2,
            sequences * total,
        )
        parts = (scores * pairs, mix * pairs)
        cached = Flops(
            one.qkv, *parts, one.output, one.mlp, one.head, one.head_last, one.head_all, one.other
        )
        last, whole = int(row * sequences), int(row * rows)
        return cached, Flops(
            int(each.get(roles.QKV, 0) * rows),
            scores * again,
            mix * again,
            int(each.get(roles.OUTPUT, 0) * rows),
            int(each.get(roles.MLP, 0) * rows),
            whole if self.every_row else last,
            last,
            whole,
            int(each.get(roles.OTHER, 0) * rows),
        )
