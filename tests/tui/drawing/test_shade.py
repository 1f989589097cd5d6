import numpy as np
import pytest

from kvtrace_tui.desk.cursor import ColourScale
from kvtrace_tui.drawing.palettes import PALETTES, xterm
from kvtrace_tui.drawing.shade import Shade, nice_ceiling


@pytest.mark.parametrize(
    ("value", "ceiling"),
    [(0.9, 1.0), (1.0, 1.0), (1.01, 1.5), (4.8, 5.0), (71, 100), (2.1e-7, 3e-7), (0, 1), (-3, 1)],
)
def test_ranges_end_on_round_numbers(value, ceiling):
    assert nice_ceiling(value) == pytest.approx(ceiling)


def test_a_range_stays_put_when_a_row_is_added():
    values = np.array([1.1, -1.4, 0.2], np.float32)
    more = np.append(values, np.float32(1.45))
    ranges = {Shade.of(v, signed=True, kind=ColourScale.LINEAR).high for v in (values, more)}
    assert ranges == {1.5}


def test_signed_values_put_zero_in_the_middle():
    shade = Shade(True, 2.0)
    assert shade.levels(np.array([-2.0, 0.0, 2.0, 9.0]), 9).tolist() == [0, 4, 8, 8]


def test_unsigned_values_start_at_zero():
    assert Shade(False, 2.0).levels(np.array([0.0, 1.0, 2.0]), 8).tolist() == [0, 4, 7]


def test_what_is_not_finite_gets_a_level_of_its_own():
    values = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    assert Shade(True, 1.0).levels(values, 32).tolist() == [32, 32, 32, 31]


def test_a_logarithmic_scale_gives_each_decade_the_same_room():
    shade = Shade(False, 1.0, ColourScale.LOG)
    values = np.array([0.0, 3e-6, 3e-5, 3e-4, 3e-3, 3e-2, 0.3, 1.0])
    assert shade.levels(values, 5).tolist() == [0, 0, 0, 1, 2, 3, 4, 4]
    assert shade.label == "log 1e-05…1"


def test_a_logarithmic_scale_keeps_signs():
    levels = Shade(True, 1.0, ColourScale.LOG).levels(np.array([-1.0, -1e-3, 0, 1e-3, 1.0]), 100)
    assert levels.tolist() == sorted(levels.tolist())
    assert levels[2] == 50


def test_a_percentile_ignores_one_outlier():
    values = np.append(np.full(999, 0.9), 1000.0).astype(np.float32)
    shade = Shade.of(values, signed=True, kind=ColourScale.PERCENTILE)
    assert shade.high == 1.0
    assert shade.label == "±1 (p99)"


def test_nothing_to_show_still_has_a_range():
    for values in (np.zeros(0), np.full(3, np.nan), np.zeros(4)):
        assert Shade.of(values, signed=True, kind=ColourScale.LINEAR).high == 1.0


def test_palettes_keep_dark_to_bright_order_for_unsigned_values():
    for palette in PALETTES:
        colours = palette.colours(32, signed=False).astype(float)
        luminance = colours @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(luminance) > 0).all(), palette.name


def test_signed_palettes_mirror_around_zero_in_lightness():
    for palette in PALETTES:
        luminance = palette.colours(33, signed=True).astype(float) @ [0.2126, 0.7152, 0.0722]
        middle = luminance[16]
        lighter = middle > luminance[0]
        ordered = np.diff(luminance[:17]) > 0 if lighter else np.diff(luminance[:17]) < 0
        assert ordered.all(), palette.name


@pytest.mark.parametrize(
    ("rgb", "index"),
    [((0, 0, 0), 16), ((255, 255, 255), 231), ((255, 0, 0), 196), ((8, 8, 8), 232),
     ((95, 135, 175), 67), ((118, 118, 118), 243)],
)  # fmt: skip
def test_the_nearest_xterm_colour_is_found(rgb, index):
    assert xterm(*rgb) == index
