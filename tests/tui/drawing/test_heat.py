import numpy as np
from rich.console import Console
from rich.segment import Segment
from textual.strip import Strip

from kvtrace_tui.desk.cursor import ColourScale
from kvtrace_tui.drawing.depth import Depth
from kvtrace_tui.drawing.maps import heatstrip
from kvtrace_tui.drawing.maps.filling import Filling
from kvtrace_tui.drawing.maps.heat import Look, heat_map, legend
from kvtrace_tui.drawing.maps.heatstrip import HeatStrip, Painter, heat_strip, joined, plain_strip
from kvtrace_tui.drawing.palettes import PALETTES, Palette
from kvtrace_tui.drawing.shade import Shade

BLACK_WHITE = Palette("test", "000000 ffffff", "000000 ffffff")


def console(depth=Depth.TRUE):
    system = "truecolor" if depth is Depth.TRUE else "256"
    return Console(color_system=system, force_terminal=True, width=200)


def look(depth=Depth.TRUE, signed=False, high=1.0, **more):
    return Look(BLACK_WHITE, depth, Shade(signed, high), **more)


def cells(strip):
    """(glyph, upper colour, lower colour) of every cell."""
    found = []
    for text, style, _ in strip:
        triplets = [
            None if c is None else tuple(c.get_truecolor()) for c in (style.color, style.bgcolor)
        ]
        found += [(letter, *triplets) for letter in text]
    return found


def test_a_cell_holds_two_values_one_above_the_other():
    values = np.array([[0.0, 1.0], [1.0, 1.0]], np.float32)
    axis = Filling.fit(2, 2)
    (strip,) = heat_map(values, axis, axis, look())
    black, white = (0, 0, 0), (255, 255, 255)
    assert cells(strip) == [("▀", black, white), ("▀", white, white)]


def test_an_odd_last_row_stands_above_nothing():
    strips = heat_map(np.ones((3, 1), np.float32), Filling.fit(3, 3), Filling.fit(1, 1), look())
    assert len(strips) == 2
    ((_, upper, lower),) = cells(strips[1])
    assert upper == (255, 255, 255)
    assert lower == (0x2A, 0x32, 0x3E)


def test_runs_of_equal_cells_are_written_once():
    values = np.zeros((2, 50), np.float32)
    (strip,) = heat_map(values, Filling.fit(2, 2), Filling.fit(50, 50), look())
    assert strip.render(console()) == "\x1b[38;2;0;0;0;48;2;0;0;0m" + "▀" * 50 + "\x1b[0m"


def test_what_is_not_finite_stands_out_and_what_is_absent_recedes():
    values = np.array([[np.nan, np.inf]], np.float32)
    down, across = Filling.fit(1, 1), Filling.fit(2, 2)
    ((_, nan, _), (_, inf, _)) = cells(heat_map(values, down, across, look())[0])
    assert nan == inf == (0xFF, 0x3F, 0xD0)
    absent = look(absent_nan=True)
    ((_, nan, _), (_, inf, _)) = cells(heat_map(values, down, across, absent)[0])
    assert (nan, inf) == ((0x2A, 0x32, 0x3E), (0xFF, 0x3F, 0xD0))


def test_a_small_crosshair_is_white_beside_black():
    values = np.full((4, 3), 0.5, np.float32)
    strips = heat_map(values, Filling.fit(4, 4), Filling.fit(3, 3), look(), mark=(3, 1))
    assert cells(strips[1])[1] == ("▀", (0, 0, 0), (255, 255, 255))


def test_a_large_crosshair_is_a_frame_that_leaves_the_value_in_sight():
    values = np.zeros((1, 1), np.float32)
    axis = Filling.fit(1, 6)
    strips = heat_map(values, axis, axis, look(), mark=(0, 0))
    picture = [cells(strip) for strip in strips]
    assert all(cell[1] == (255, 255, 255) for cell in picture[0])
    assert picture[1][2][1:] == ((0, 0, 0), (0, 0, 0))


def test_a_crosshair_out_of_view_changes_nothing():
    values = np.arange(64, dtype=np.float32).reshape(2, 32) / 64
    down, across = Filling.fit(2, 2), Filling.fit(32, 8, zoom=2, focus=0)
    plain = heat_map(values, down, across, look())
    assert heat_map(values, down, across, look(), mark=(0, 31)) == plain


def test_256_colours_use_palette_indices_and_at_most_16_levels():
    values = np.linspace(0, 1, 200, dtype=np.float32)[None].repeat(2, 0)
    (strip,) = heat_map(values, Filling.fit(2, 2), Filling.fit(200, 200), look(Depth.XTERM))
    text = strip.render(console(Depth.XTERM))
    assert ";2;" not in text
    assert "38;5;16;48;5;16m" in text
    assert len({style for _, style, _ in strip}) <= 16


def test_without_colours_one_glyph_stands_for_one_value_and_says_the_sign():
    values = np.array([[-1.0, 0.0, 1.0]], np.float32)
    down, across = Filling.fit(1, 1), Filling.fit(3, 3)
    (strip,) = heat_map(values, down, across, look(Depth.NONE, signed=True))
    assert strip.text == "#·█"
    assert all(style is not None and style.color is None for _, style, _ in strip)


def test_the_crosshair_shows_without_colours_too():
    values = np.zeros((2, 5), np.float32)
    strips = heat_map(values, Filling.fit(2, 2), Filling.fit(5, 5), look(Depth.NONE), mark=(1, 3))
    assert [strip.text for strip in strips] == ["     ", "   ◆ "]


def test_sixteen_colours_draw_the_glyphs_of_each_sign_in_one_colour():
    values = np.array([[-1.0, -1.0, 1.0]], np.float32)
    (strip,) = heat_map(values, Filling.fit(1, 1), Filling.fit(3, 3), look(Depth.ANSI, signed=True))
    assert [text for text, _, _ in strip] == ["##", "█"]


def test_the_legend_prints_the_range():
    pieces = legend(Look(PALETTES[0], Depth.TRUE, Shade(True, 5.0, ColourScale.LINEAR)), 8)
    assert "".join(text for text, _ in pieces) == "▀▀▀▀▀▀▀▀ ±5"


# -- what HeatStrip leans on -----------------------------------------------------------------


def keys():
    return np.array([0, 0, 257, 3, 3, 3], np.uint16)


def paint():
    return Painter(PALETTES[0], Depth.TRUE, signed=True)


def test_strip_still_is_what_the_fast_map_leans_on():
    assert {"_segments", "_render_cache", "_cell_length"} <= set(Strip.__slots__)
    assert heatstrip.contract_holds()
    assert type(heat_strip(keys(), paint())) is HeatStrip


def test_the_fast_and_the_plain_strip_are_the_same_line():
    sides = Strip([Segment("ab", console().get_style("bold"))]), Strip([Segment("c")], 1)
    fast, plain = HeatStrip(keys(), paint(), *sides), plain_strip(keys(), paint(), *sides)
    assert fast == plain
    assert list(fast) == list(plain)
    assert fast.cell_length == plain.cell_length == 9
    assert fast.crop(1, 5) == plain.crop(1, 5)
    assert list(fast.divide([2, 9])) == list(plain.divide([2, 9]))
    assert fast.divide([9]) == [fast]
    assert fast.simplify() == plain.simplify()
    assert fast.apply_style(console().get_style("bold")) == plain.apply_style(
        console().get_style("bold")
    )


def test_the_plain_strip_is_used_when_strip_has_changed(monkeypatch):
    monkeypatch.setattr(heatstrip, "contract_holds", lambda: False)
    assert type(heat_strip(keys(), paint())) is Strip


def test_filling_and_joining_keep_a_map_fast():
    filled = HeatStrip(keys(), paint()).extend_cell_length(10)
    assert type(filled) is HeatStrip
    assert filled.text == "▀▀▀▀▀▀    "
    row = joined([Strip([Segment("K")], 1), filled, Strip([Segment("|")], 1)])
    assert type(row) is HeatStrip
    assert (row.text, row.cell_length) == ("K▀▀▀▀▀▀    |", 12)
    assert row.render(console()).startswith("K\x1b[38;2;")
