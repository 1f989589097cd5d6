from itertools import product

import pytest

from kvtrace_tui.arrangement import PANES, SizeClass, arrange, size_class

SIZES = [(w, h) for w in (40, 60, 80, 99, 100, 120, 139, 140, 160, 179, 180, 200, 240, 500)
         for h in (12, 15, 16, 20, 24, 29, 30, 45, 60, 100, 200)]  # fmt: skip
ALL = ("timeline", *PANES, "output")


@pytest.mark.parametrize(
    ("size", "kind"),
    [((39, 50), SizeClass.TINY), ((200, 11), SizeClass.TINY), ((80, 24), SizeClass.COMPACT),
     ((200, 29), SizeClass.COMPACT), ((99, 60), SizeClass.COMPACT), ((100, 30), SizeClass.WIDE),
     ((179, 45), SizeClass.WIDE), ((180, 45), SizeClass.VERY_WIDE)],
)  # fmt: skip
def test_the_class_follows_the_size(size, kind):
    assert size_class(*size) is kind


@pytest.mark.parametrize("maximised", [False, True])
@pytest.mark.parametrize("shown", ["keys", "queries", "cost", "output"])
def test_boxes_fit_never_overlap_and_leave_no_pane_empty(shown, maximised):
    for width, height in SIZES:
        for layers, foot in product((1, 12, 80), (1, 3)):
            boxes = arrange(width, height, shown, maximised=maximised, layers=layers, foot=foot)
            cells = [[0] * width for _ in range(height)]
            for box in boxes.values():
                assert box.width > 0
                assert box.height > 0
                for y in range(box.y, box.y + box.height):
                    for x in range(box.x, box.x + box.width):
                        cells[y][x] += 1
            assert max(map(max, cells)) == 1, (width, height, layers)
            assert shown in boxes


def test_too_small_shows_a_message_alone():
    for size in [(1, 1), (39, 40), (300, 5)]:
        assert set(arrange(*size, "keys")) == {"small"}


def test_compact_shows_one_pane_under_the_timeline():
    boxes = arrange(80, 24, "attention")
    assert set(boxes) == {"status", "sentence", "timeline", "tabs", "attention", "footer"}
    assert boxes["attention"].height == 15


def test_wide_shows_every_pane():
    assert set(ALL) <= set(arrange(160, 45, "keys"))


def test_wide_puts_q_beside_k_and_the_output_beside_v():
    boxes = arrange(160, 45, "keys")
    for narrow, wide in (("queries", "keys"), ("output", "values")):
        assert (boxes[narrow].y, boxes[narrow].height) == (boxes[wide].y, boxes[wide].height)
        assert boxes[narrow].x < boxes[wide].x


def test_very_wide_puts_q_k_and_v_side_by_side():
    boxes = arrange(200, 60, "keys")
    tops = {boxes[name].y for name in ("queries", "keys", "values", "output")}
    assert len(tops) == 1
    assert boxes["queries"].x < boxes["keys"].x < boxes["values"].x < boxes["output"].x


def test_without_room_q_takes_the_place_of_v_while_it_is_asked_for():
    assert "queries" not in arrange(100, 30, "keys")
    asked = arrange(100, 30, "queries")
    assert asked["queries"] == arrange(100, 30, "keys")["values"]
    assert "values" not in asked


def test_the_grid_has_a_line_for_every_layer_where_there_is_room():
    assert arrange(160, 45, "keys", layers=12)["grid"].height == 15
    assert arrange(160, 45, "keys", layers=80)["inspector"].height == 13


def test_maximised_leaves_the_status_and_the_keys():
    boxes = arrange(160, 45, "grid", maximised=True)
    assert set(boxes) == {"status", "grid", "footer"}
    assert boxes["grid"].height == 43


def test_the_sentence_of_several_sequences_has_two_lines_sooner():
    assert arrange(160, 45, "keys")["sentence"].height == 1
    assert arrange(160, 45, "keys", sequences=3)["sentence"].height == 2
    assert arrange(200, 60, "keys", sequences=3)["sentence"].height == 1
