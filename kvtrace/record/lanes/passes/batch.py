"""Token paths that are recomputed together, and the error when they can't be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from kvtrace.record.lanes.paths import Path


class Batch(Struct, frozen=True):
    """Paths that are recomputed together.

    Attributes:
        paths: In the order of the batch; shorter ones are filled up at the right, which a causal
            model does not see.
        keep: Rows whose logits are wanted, ascending; None: all.
        extra: Further arguments, such as an encoder's output.
    """

    paths: Sequence[Path]
    keep: Sequence[int] | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of the longest path."""
        return max(len(path.tokens) for path in self.paths)


class CannotRecomputeError(Exception):
    """The model does not run over tokens alone; the message says why."""
