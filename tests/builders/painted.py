"""A terminal that takes what is written and knows what every cell then shows."""

import re

from rich.cells import cell_len

_PART = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\n)|([^\x1b\n]+)")


class Painted:
    """Cells as (character, style), by (column, line); only what our frames write is understood."""

    def __init__(self):
        self.cells = {}

    def feed(self, text):
        x = y = 0
        style = ""
        for code, command, newline, letters in _PART.findall(text):
            if command == "H":
                y, x = ([int(part) - 1 for part in code.split(";")]) if code else (0, 0)
            elif command == "m":
                style = "" if code in ("", "0") else code
            elif newline:
                y += 1
            else:
                assert not command, f"CSI {code}{command} was written"
                for letter in letters:
                    self.cells[x, y] = letter, style
                    x += cell_len(letter)

    def different(self, other):
        """Cells that do not show the same."""
        known = self.cells.keys() | other.cells.keys()
        return sorted(at for at in known if self.cells.get(at) != other.cells.get(at))
