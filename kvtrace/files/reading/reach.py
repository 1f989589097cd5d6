"""How far a growing file was read, frame by frame; past damage it goes on at the next good head.

A torn tail is not damage: the next look continues there.
"""

from __future__ import annotations

from kvtrace.errors import TraceError, VersionError
from kvtrace.files.layout import MUST_UNDERSTAND, Head, Kind
from kvtrace.files.reading.damage import DamageList
from kvtrace.files.reading.frames import FrameFile
from kvtrace.trace import Damage

_KINDS = frozenset(Kind)


class Reach:
    """How far one file was read.

    Attributes:
        end: Where the last whole frame ends.
        sequence: Number of the next frame.
        size: Of the file, when it was last looked at.
    """

    def __init__(self, file: FrameFile, damage: DamageList) -> None:
        """Nothing was read yet.

        Args:
            file: It.
            damage: What can't be read of it.
        """
        self.end, self.sequence, self.size = file.start, 0, -1
        self._file, self._damage = file, damage
        self._moment = (-1, 0)
        self._last: tuple[int, Head] | None = None

    def passed(self, offset: int, head: Head) -> None:
        """A frame was read: the next one follows it."""
        self.end, self.sequence = offset + head.total, head.sequence + 1
        self._last = offset, head

    def has_changed(self) -> bool:
        """Whether the file may be another one than when this was last asked."""
        before, self._moment = self._moment, self._file.moment()
        return self._moment != before

    def is_lost(self) -> bool:
        """Whether the file is shorter than what was read of it, or holds something else now.

        Then nothing more is read: what stands there may be of another run.
        """
        size = self._moment[0]
        if self._last is not None:
            offset, head = self._last
            try:
                same = self._file.head(offset, size) == head
            except TraceError:
                same = False
            if not same:
                cut = size < offset + head.total
                self._file.lost = (
                    f"{self._file.name}: {'cut short' if cut else 'written over'} while it was "
                    "open; nothing more of it is read. Open it again."
                )
                self._damage.add(self._file.lost, offset)
                return True
        self.size = size
        return False

    def next(self) -> tuple[int, Head] | None:
        """Go past one frame, or past damage to the next: where it starts; None at the end.

        Raises:
            VersionError: It must be understood and is not known.
        """
        while True:
            offset, name = self.end, self._file.name
            try:
                head = self._file.head(offset, self.size)
                if head is not None and head.sequence < self.sequence:
                    raise TraceError(f"{name}: the frame at byte {offset} is out of order.")
            except TraceError as error:
                if not self._skip(error):
                    return None
                continue
            if head is None:
                return None
            refuse_unknown(self._file, head)
            if head.sequence > self.sequence:
                self._damage.add(f"{name}: frames before byte {offset} are missing.", offset)
            self.passed(offset, head)
            return offset, head

    def _skip(self, error: TraceError) -> bool:
        """Go on at the next good head; False at a torn tail."""
        found = self._file.next_head(self.end, self.sequence)
        if found is None:
            self._damage.tail = Damage(str(error), self.end)
            return False
        self._damage.add(str(error), self.end)
        head = self._file.head(found, self._file.size())
        self.end, self.sequence = found, head.sequence if head else self.sequence
        return True


def refuse_unknown(file: FrameFile, head: Head) -> None:
    """Refuse a frame that must be understood and is not known.

    Raises:
        VersionError: It is one.
    """
    if head.kind not in _KINDS and head.flags & MUST_UNDERSTAND:
        raise VersionError(
            f"{file.name}: a frame of kind {head.kind} must be understood; this kvtrace "
            f"knows kinds up to {max(_KINDS)}. Upgrade with `pip install -U kvtrace`."
        )
