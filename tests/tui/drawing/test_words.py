import numpy as np
import pytest
from rich.cells import cell_len
from rich.segment import Segment
from textual.strip import Strip

from kvtrace.trace import NO_TOKEN
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.bars import bar, layered, spark, strongest
from kvtrace_tui.drawing.depth import Depth, depth_of
from kvtrace_tui.drawing.lines import beside, elided, line, padded, page, shown_in
from kvtrace_tui.drawing.maps.axis import across_labels
from kvtrace_tui.drawing.maps.filling import Filling
from kvtrace_tui.drawing.maps.grid import GridLayout, layer_grid
from kvtrace_tui.drawing.maps.heat import Look
from kvtrace_tui.drawing.maps.numbers import number, number_table
from kvtrace_tui.drawing.palettes import PALETTES
from kvtrace_tui.drawing.shade import Shade
from kvtrace_tui.drawing.title import title
from kvtrace_tui.drawing.tokens import token_strip

HOSTILE = [
    "\x1b]0;x\x07",
    "[/foo]",
    "\x00",
    "a\u202eb",
    "e" + "\u0301" * 40,
    "日本語",
    "\ud800",
    "",
]


def text_of(pieces):
    return "".join(text for text, _ in pieces)


def test_bars_grow_in_eighths_and_anything_shows():
    assert bar(0.5, 4) == "██  "
    assert bar(1.0, 4) == "████"
    assert bar(9.0, 4) == "████"
    assert bar(1 / 32, 4) == "▏   "
    assert bar(1e-9, 4) == "▏   "
    assert bar(0.0, 4) == bar(float("nan"), 4) == "    "
    assert bar(0.5, 0) == ""


def test_sparks_show_each_value():
    assert spark([0, 4, 8], 8.0) == "▁▄█"
    assert spark([1, 2], 0) == "▁▁"
    assert spark([-1.0], 4) == " "


def test_the_strongest_of_each_bin_is_kept():
    assert strongest(np.array([1.0, 5.0, 2.0, 0.0, 3.0]), 3).tolist() == [5.0, 2.0, 3.0]
    assert strongest(np.zeros(0), 3).tolist() == []


def test_the_smaller_column_stands_in_front_of_the_larger():
    inks = [(ink.RECOMPUTED, ink.CACHED)]
    top, bottom = layered([1.0], [0.25], 2, inks)
    assert (top.text, bottom.text) == ("█", "▄")
    (segment,) = list(bottom)
    assert segment.style.color == ink.CACHED.color
    assert segment.style.bgcolor == ink.RECOMPUTED.color


def test_a_line_is_exactly_as_wide_as_asked():
    for width in range(12):
        strip = line(width, ("日本", ink.TEXT), ("abc", ink.DIM), right=[("R", ink.DIM)])
        assert strip.cell_length == width
        assert cell_len(strip.text) == width
    assert line(12, ("ab", ink.TEXT), right=[("R", ink.DIM)]).text == "ab         R"


def test_cut_text_says_so():
    assert padded("attention", 6) == "atten…"
    assert padded("ab", 4, right=True) == "  ab"
    assert padded("ab", 0) == ""


def test_a_page_is_exactly_as_large_as_asked():
    strips = page([line(3, ("abc", ink.TEXT)), line(9, ("123456789", ink.TEXT))], 5, 3)
    assert [strip.text for strip in strips] == ["abc  ", "12345", "     "]
    assert page([line(3)], 3, 0) == []


def test_blocks_side_by_side_are_filled():
    left, right = [line(2, ("ab", ink.TEXT))], [line(1, ("c", ink.TEXT)), line(1, ("d", ink.TEXT))]
    assert [strip.text for strip in beside([(left, 2), (right, 1)])] == ["abc", "  d"]


def test_sixteen_colours_keep_cached_blue_recomputed_orange_and_bugs_red():
    def numbers(style):
        shown = ink.fitting(style, Depth.ANSI)
        return shown.color.number, shown.bgcolor.number

    assert numbers(ink.CACHED) == (14, 0)  # bright cyan on black
    assert numbers(ink.RECOMPUTED) == (11, 0)  # yellow: there is no orange
    assert numbers(ink.BAD) == (9, 0)
    assert numbers(ink.GOOD) == (10, 0)
    assert numbers(ink.NEGATIVE) == (13, 0)
    assert numbers(ink.TEXT) == (7, 0)
    assert numbers(ink.DIM) == (8, 0)
    assert numbers(ink.CHOSEN) == (0, 11)
    assert numbers(ink.SELECTED) == (15, 4)
    assert ink.fitting(ink.STRONG, Depth.ANSI).bold


def test_without_colour_a_lit_background_becomes_reverse_video():
    (plain,) = shown_in([line(4, ("ab", ink.CHOSEN), ("cd", ink.TEXT))], Depth.NONE)
    styles = [style for _, style, _ in plain]
    assert [style.reverse for style in styles] == [True, None]
    assert all(style.color is None and style.bgcolor is None for style in styles)


def test_depth_follows_the_terminal_and_no_color():
    assert depth_of("truecolor", no_color=False) is Depth.TRUE
    assert depth_of("256", no_color=False) is Depth.XTERM
    assert depth_of("standard", no_color=False) is Depth.ANSI
    assert depth_of("truecolor", no_color=True) is Depth.NONE
    assert depth_of(None, no_color=False) is Depth.NONE


def test_the_token_strip_shows_the_current_token_and_those_around_it():
    texts = [f"w{i}" for i in range(100)]
    strip = token_strip(texts, 50, 40)
    shown = [index for _, _, index in strip.spans]
    assert 50 in shown
    assert shown == list(range(shown[0], shown[-1] + 1))
    start, end, _ = next(span for span in strip.spans if span[2] == 50)
    assert end <= 40
    assert strip.token_at(start) == 50
    assert strip.token_at(end) is None


def test_hostile_tokens_are_harmless_in_the_strip():
    shown = text_of(token_strip(HOSTILE, 3, 200).pieces)
    assert "[/foo]" in shown
    assert shown.isprintable()
    assert "\u202e" not in shown
    assert "日本語" in shown


def test_an_empty_token_strip_is_empty():
    assert token_strip([], 0, 40).pieces == ()
    assert token_strip(["a"], 0, 0).pieces == ()


def test_numbers_are_aligned_and_exact_enough():
    shown = [number(v) for v in (0.0, 1.23456789, -802.2125, 4e-9, 1e9, float("nan"), -np.inf)]
    assert shown == ["+0.00000", "+1.23457", "-802.212", "+4.0e-09", "+1.0e+09", "NaN", "-Inf"]
    assert all(len(text) <= 9 for text in shown)


def test_the_number_table_lights_the_cell_under_the_crosshair():
    values = np.arange(200, dtype=np.float32).reshape(20, 10)
    lines = number_table(values, [f"r{i}" for i in range(20)], (13, 4), (50, 6))
    lit = [seg.text for strip in lines for seg in strip if seg.style == ink.CHOSEN]
    assert [text.strip() for text in lit] == ["+134.000"]
    assert len(lines) == 6
    assert all(strip.cell_length == 50 for strip in lines)


def test_axis_labels_name_the_crosshair_and_never_overlap():
    pieces = across_labels(Filling.fit(978, 90), mark=500)
    text = text_of(pieces)
    assert len(text) == 90
    assert "▲500" in text
    words = text.split()
    assert words[0] == "0"
    assert sorted(int(w.lstrip("▲")) for w in words) == [int(w.lstrip("▲")) for w in words]


def test_axis_labels_can_name_positions():
    names = [10 + i for i in range(8)]
    assert "▲13" in text_of(across_labels(Filling.fit(8, 80), names, mark=3))


def test_padding_has_no_number_and_is_said_once():
    names = [-3, -2, -1, 0, 1]
    text = text_of(across_labels(Filling.fit(5, 50), names, mark=4))
    assert text.startswith("pad╌╌╌╌")
    assert text.split("╌")[-1].split() == ["0", "▲1"]
    assert "-" not in text


def test_rows_that_stand_for_no_single_token_have_no_number_either():
    names = [-1, 0, 1, NO_TOKEN, NO_TOKEN + 1, NO_TOKEN + 2]
    text = text_of(across_labels(Filling.fit(6, 60), names))
    assert text.startswith("pad╌╌╌╌")
    assert text[30:].startswith("none╌╌╌╌")
    assert text.count("none") == 1


def grid(layers=3, heads=4, size=(40, 10), mark=(1, 2), depth=Depth.TRUE, **more):
    layout = GridLayout.fit(layers, heads, size, mark)
    values = np.linspace(0, 1, layers * heads, dtype=np.float32).reshape(layers, heads)
    look = Look(PALETTES[0], depth, Shade(False, 1.0))
    return layout, layer_grid(values, layout, look, mark, **more)


def test_the_grid_marks_the_cursor_and_names_layers_and_heads():
    layout, lines = grid()
    assert lines[0].text.split() == ["0", "1", "2", "3"]
    assert [strip.text.split()[0] for strip in lines[1:]] == ["0", "1", "2"]
    x = lines[2].text.index("◆")
    assert layout.at(x, 2) == (1, 2)
    assert layout.at(0, 2) is None
    assert layout.at(x, 0) is None


def test_layers_that_have_not_run_yet_show_no_value():
    _, lines = grid(run_until=0, mark=(0, 0))
    assert "·" not in lines[1].text
    assert lines[2].text.count("·") == lines[3].text.count("·") == 4


def test_a_grid_of_many_layers_and_heads_keeps_the_cursor_in_view():
    for mark in [(0, 0), (79, 63), (40, 31)]:
        _, lines = grid(80, 64, (30, 12), mark)
        assert sum("◆" in strip.text for strip in lines) == 1
        assert all(strip.cell_length <= 30 for strip in lines)


def test_the_grid_speaks_in_glyphs_without_colours():
    _, lines = grid(depth=Depth.NONE, mark=(0, 0))
    assert "█" in lines[3].text


def test_a_title_shows_focus_without_colour():
    focused = shown_in([title(30, "K cache", "L3", focused=True)], Depth.NONE)[0]
    other = shown_in([title(30, "K cache", "L3")], Depth.NONE)[0]
    assert next(iter(focused)).style.reverse
    assert not next(iter(other)).style.reverse
    assert focused.text.startswith(" K cache  L3")


def test_every_segment_has_a_style():
    _, lines = grid()
    lines += [Strip([Segment(t, s) for t, s in token_strip(HOSTILE, 1, 90).pieces])]
    assert all(style is not None for strip in lines for _, style, _ in strip)


@pytest.mark.parametrize(
    ("width", "words"),
    [(9, "ab 1.25 c"), (8, "ab 1.25…"), (7, "ab 1.2…"), (5, "ab 1…"), (2, "a…"), (1, "…"), (0, "")],
)
def test_what_is_cut_says_so(width, words):
    pieces = [("ab", ink.TEXT), (" 1.25", ink.STRONG), (" c", ink.TEXT)]
    assert "".join(text for text, _ in elided(pieces, width)) == words


def test_a_piece_that_ends_where_the_line_does_is_marked_when_more_follows():
    assert elided([("ab", ink.TEXT), ("cd", ink.DIM)], 2) == [("a…", ink.TEXT)]


def test_no_line_is_cut_without_a_mark_and_spaces_are_no_loss():
    assert line(6, ("cached", ink.TEXT), (" 7.25", ink.STRONG)).text == "cache…"
    assert line(6, ("cached ", ink.TEXT)).text == "cached"
    assert line(6, ("cached", ink.TEXT), ("  ", ink.STRONG)).text == "cached"


def test_a_number_with_fewer_digits_fits_in_seven_cells():
    assert [number(v, True) for v in (1.23456789, 999.96, 0.0)] == ["+1.2346", "+1000", "+0.0000"]
    for size in range(-9, 12):
        for value in (9.999999 * 10.0**size, 1.234567 * 10.0**size):
            assert len(number(-value, True)) <= 7, value
            assert len(number(-value)) <= 8, value
