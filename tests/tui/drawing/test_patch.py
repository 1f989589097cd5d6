import numpy as np
import pytest
from rich.console import Console
from rich.style import Style

from builders.painted import Painted
from kvtrace_tui.drawing.depth import Depth
from kvtrace_tui.drawing.lines import line
from kvtrace_tui.drawing.maps.heatstrip import HeatStrip, painter
from kvtrace_tui.drawing.palettes import PALETTES
from kvtrace_tui.drawing.patch import patch

CONSOLE = Console(color_system="truecolor", force_terminal=True)
PAINT = painter(PALETTES[0], Depth.TRUE, signed=True)
OTHER_PAINT = painter(PALETTES[1], Depth.TRUE, signed=True)
RED = Style(color="#ff0000", bgcolor="#000000")
BLUE = Style(color="#0000ff", bgcolor="#000000")


def heat(*keys, left="ab", right="", paint=PAINT):
    """A line of a map with something at its sides."""
    sides = [line(len(words), (words, BLUE)) if words else None for words in (left, right)]
    return HeatStrip(np.array(keys, np.uint16), paint, *sides)


def words(text, style=RED):
    return line(len(text), (text, style))


def shows(strips, at=(3, 2)):
    """A terminal on which these lines are painted."""
    terminal = Painted()
    terminal.feed(patch(at, None, strips, CONSOLE))
    return terminal


CHANGES = {
    "a cell": (heat(1, 2, 3, 4), heat(1, 2, 9, 4)),
    "cells at both ends": (heat(1, 2, 3, 4), heat(8, 2, 3, 9)),
    "what stands left": (heat(1, 2, left="ab"), heat(1, 2, left="cd")),
    "what stands right": (heat(1, 2, right="ab"), heat(1, 2, right="cd")),
    "a map that grew": (heat(1, 2, right="xyz"), heat(1, 2, 5, right="xy")),
    "a map that shrank": (heat(1, 2, 5, right="xy"), heat(1, 2, right="xyz")),
    "a map that grew and changed": (heat(1, 2, right="xyz"), heat(7, 2, 5, right="xy")),
    "the palette": (heat(1, 2), heat(1, 2, paint=OTHER_PAINT)),
    "words": (words("one two"), words("one six")),
    "the colour of words": (words("one"), words("one", BLUE)),
    "words that become a map": (words("abcd"), heat(1, 2)),
    "a map that becomes words": (heat(1, 2), words("abcd")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("back", [False, True], ids=["there", "and back"])
def test_a_patched_terminal_shows_what_one_painted_anew_shows(change, back):
    before, after = reversed(change) if back else change
    fixed = words("fixed")
    terminal = shows([fixed, before, fixed])
    assert terminal.different(shows([fixed, after, fixed]))
    terminal.feed(patch((3, 2), [fixed, before, fixed], [fixed, after, fixed], CONSOLE))
    assert terminal.different(shows([fixed, after, fixed])) == []


def test_what_is_shown_already_is_not_written():
    before = [heat(1, 2, right="xy"), words("one")]
    again = [heat(1, 2, right="xy"), words("one")]
    assert patch((0, 0), before, again, CONSOLE) == ""


def test_only_the_cells_that_changed_are_written():
    text = patch((10, 4), [heat(1, 2, 3, 4)], [heat(1, 2, 9, 4)], CONSOLE)
    assert text.startswith("\x1b[5;15H")
    assert text.count("▀") == 1


def test_another_number_of_lines_is_written_whole():
    after = [words("one"), words("two")]
    assert patch((0, 0), [words("one")], after, CONSOLE) == patch((0, 0), None, after, CONSOLE)
