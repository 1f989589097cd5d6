"""When a forward may be slept through: once the mode, awake all along, has shown that it may.

Every product must have gone through a replaced function, and nothing else that was seen may have
mattered. It is looked at again now and then, and after one that attended less than those before.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtrace.record.flow.marks.families import Families

SEEN, SEEN_MOST = (1, 16), 128
"""Forwards that are looked at by a mode that is awake; later one in so many."""


DOUBT = 4
"""Forwards that are followed awake after one in which attention may have been missed."""


@dataclass(slots=True)
class Learnt:
    """What is known of the forwards of one module.

    Attributes:
        forwards: There were so far.
        plain: The first one showed nothing that needs a mode that is always awake.
        good: The last one that was followed awake may have been slept through.
        attended: Attention calls of the last one.
        doubted: Attention calls of the last one, where it had fewer than those before; else None.
        since: Forwards since then, followed awake, with more calls than that one.
        bad: So many were followed awake to no avail.
    """

    forwards: int = 0
    plain: bool = False
    good: bool = False
    attended: int = 0
    doubted: int | None = None
    since: int = 0
    bad: int = 0

    def begin(self) -> tuple[bool, bool]:
        """A forward begins: whether to sleep, and else whether to try out if that is possible."""
        self.forwards += 1
        looks = self.forwards in SEEN or self.forwards % SEEN_MOST == 0
        sleeps = self.good and not looks and self.doubted is None
        return sleeps, not sleeps and self.plain and (self.bad < 2 or looks)

    def over(self, attended: int, seen: Families, *, slept: bool, trial: bool) -> bool:
        """A forward is over.

        Args:
            attended: Attention calls that were seen in it.
            seen: What the mode saw of it.
            slept: It was slept through.
            trial: It was tried out if it could be.

        Returns:
            Whether attention of an earlier one was missed.
        """
        if not slept:
            self.plain = not (seen.odd or seen.twice or seen.by_taint)
            self.good = trial and seen.may_sleep
            self.bad += trial and not self.good
        missed = False
        if slept and (attended < self.attended or seen.twice or seen.odd):
            self.doubted, self.since = attended, 0
        elif not slept:
            self.since += 1
            if self.doubted is not None and self.doubted >= attended:
                self.doubted = None  # as few, awake: layers are skipped in some steps
            elif self.since > DOUBT:
                missed = self.missed()
        self.attended = attended
        return missed

    def missed(self) -> bool:
        """Whether one that was slept through had fewer calls than all that followed; once."""
        missed = self.doubted is not None and self.since > 0
        self.doubted = None
        return missed
