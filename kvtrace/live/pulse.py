"""Whether another process is doing anything: its CPU time, as the system counts it.

Tells a busy recorder (reading weights, building a model) from one that waits for a server that
never answers. Knows Linux only; elsewhere there is no pulse to feel, and only messages count.
"""

from __future__ import annotations

import os
from pathlib import Path

MINIMUM = 0.05
"""CPU seconds that count as a sign of life; a sleeping interpreter uses less in minutes."""


class Pulse:
    """The CPU time of one process, looked at now and then."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/stat")
        self._last = 0.0

    def felt(self) -> bool:
        """Whether it used CPU time since the last time this was true."""
        used = self._cpu_seconds()
        if used - self._last < MINIMUM:
            return False
        self._last = used
        return True

    def _cpu_seconds(self) -> float:
        """User and system time; proc(5), fields 14 and 15, counted after the last `)`."""
        try:
            fields = self._path.read_text("ascii", "replace").rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
        except (OSError, ValueError, IndexError):
            return self._last
        return ticks / os.sysconf("SC_CLK_TCK")
