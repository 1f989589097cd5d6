"""What is known of how a site uses the rows of a cache of the model's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from kvtrace.record.cache.own.find_holder import FoundHolder
from kvtrace.record.flow.rows.row_step import RowStep

Slots = tuple[int, ...]

LOOKS = 3
"""Forwards after which a cache layer that nothing was found to hold is not looked for any more."""


@dataclass(slots=True)
class SiteUse:
    """What is known of one cache layer.

    Attributes:
        read: A step attended to rows that it had not computed.
        repeated: A step computed all rows again.
        keys, values: What holds them.
        latents: What holds that of which both are made anew in every step.
        turned: What holds the keys as they were before RoPE.
        looks: Forwards in which that was looked for.
        moves: It was looked for once more, as it had no room for the rows any longer.
        room: Slots of what was found in this forward; 0: it was not looked for.
        left: Slots of the rows that were kept of the last step, where not all were.
        beside: Rows that stand for no token are not kept: the model adds them each time.
        counted: They are held by a cache that was seen: its memory counts there.
        twin: They are copies of another cache layer's, which are held once for both.
    """

    read: bool = False
    repeated: bool = False
    keys: FoundHolder | None = None
    values: FoundHolder | None = None
    turned: FoundHolder | None = None
    latents: list[FoundHolder] = field(default_factory=list)
    looks: int = 0
    moves: bool = False
    room: int = 0
    left: Slots | None = None
    beside: bool = False
    counted: bool = False
    twin: bool = False

    @property
    def found(self) -> list[FoundHolder]:
        """What holds its rows."""
        return [one for one in (self.keys, self.values) if one is not None]

    @property
    def cached(self) -> bool:
        """Whether its rows are kept from step to step."""
        return self.read or (bool(self.found) and not self.repeated)

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to look for."""
        best = len(self.found) == 2 and all(x.rank > 0 and x.axis >= 0 for x in self.found)
        # places may hold the same rows until a step adds others to one of them
        return (best and not self.twin) or self.looks >= LOOKS

    def outgrown(self, rows: int, capacity: int | None, keys: Tensor) -> bool:
        """Whether the rows must have gone to other memory, which has room for more.

        Args:
            rows: Attended to.
            capacity: Of what held the rows so far; None: of no more than the rows.
            keys: As attended to.
        """
        if capacity is not None:
            return rows > capacity and self.left is None and not self.beside
        if self.moves or keys.untyped_storage().nbytes() <= keys.nbytes:
            return False
        # a cache that was made for the prompt alone, and one for all that follows
        memory = keys.untyped_storage().data_ptr()
        return all(one.slots and one.storage != memory for one in self.found)

    def move(self) -> None:
        """Whatever held the rows, look for it anew."""
        self.keys = self.values = self.turned = None
        self.latents = []
        self.looks, self.moves = min(self.looks, LOOKS - 1), True

    def goes_on(self, step: RowStep) -> bool:
        """Whether rows were added to those of before, as ever, and all else has been said."""
        known = self.read and self.settled and self.left is None and not self.beside
        return known and step.fresh is not None and step.parent is not None
