"""The last lines of a process that may have crashed: what it said, and where in which file it was.

Python's fault handler writes a stack when the interpreter itself is ended by a signal, and after
it a list of extension modules, which helps nobody.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from kvtrace.paths import OURS

_FRAME = re.compile(r'\s*File "(.+)", line (\d+) in (.+)')


@dataclass(slots=True)
class LastLines:
    """What is left of the lines that a process wrote.

    Attributes:
        last: The last line that says something.
        place: File and line of the innermost frame of the user's code, of a crash.
    """

    last: str = ""
    place: str = ""
    _crashed: bool = False

    def add(self, text: str) -> None:
        """One more line."""
        self._crashed = self._crashed or text.startswith("Fatal Python error:")
        frame = _FRAME.fullmatch(text) if self._crashed else None
        if frame is not None:
            path, line, name = frame.groups()
            libraries = (sys.base_prefix, sys.prefix, str(OURS))
            if not self.place and not path.startswith(("<", *libraries)):
                self.place = f"{Path(path).name}:{line}, in {name}"
        elif not (self._crashed and text.startswith(("Extension modules:", "Current thread"))):
            self.last = text

    def told(self) -> str:
        """What is worth telling of them, with a space before; empty: nothing is."""
        if self.place:
            return f" It ran {self.place}."
        return f" Its last line: {self.last}" if self.last else ""
