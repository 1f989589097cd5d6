import numpy as np
from msgspec.structs import replace

from kvtrace.analysis.checks import verdict
from kvtrace.trace import Damage, Note, Tensor
from kvtrace_tui import findings
from kvtrace_tui.desk import moves
from kvtrace_tui.desk.cursor import View
from kvtrace_tui.desk.differences import show_found
from kvtrace_tui.found import Answer, Found
from kvtrace_tui.screens.pages.findings import answer_rows, finding_rows, found_rows

LANE = "recomputed"


def plant(trace, step, layer, kv_head):
    """Keys of a head that the other lane has otherwise, in the row that the step wrote."""
    row = step + 4
    trace.source.pass_tensors[LANE, 0, Tensor.KEYS, layer][0, kv_head, row] += 3.0
    compared = trace.source.lane_steps[LANE, step]
    compared.max_abs[layer, 1, kv_head] = 3.0
    compared.row[layer, 1, kv_head] = 0
    return row


def words(rows):
    return ["".join(text for text, _ in row) for row in rows]


def test_what_is_wrong_is_told_at_once_and_the_answer_comes_last(trace):
    plant(trace, 3, 1, 1)
    told = []
    answer = findings.search(trace, LANE, told.append)
    assert answer.diverged
    assert [(one.step, one.layer, one.grave) for one in told] == [(3, 1, True)]
    assert told[0].means
    assert told[0].cause


def test_equal_lanes_say_so_with_the_reason(trace):
    told = []
    answer = findings.search(trace, LANE, told.append)
    assert (answer.equal, told) == (True, [])
    assert "Counted as rounding" in answer.lines[0]


def test_without_another_lane_nothing_is_claimed(trace):
    trace.source.meta = replace(trace.meta, lanes=())
    assert findings.search(trace, LANE, print) == Answer()
    assert "only the cached lane" in words(answer_rows(Answer(), (), 80))[1]


def test_what_cannot_be_read_is_listed_above_the_answer():
    damage = [Damage(f"step {number}: dam\x1b[2Jaged", number) for number in range(25)]
    rows = words([row for row, _ in finding_rows(Answer("checking"), (), 80, 0, damage)])
    assert rows[1] == " ▲ 25 damaged: can't be read, and is not shown as anything"
    assert rows[2] == "   step 0: dam␛[2Jaged"
    assert rows[22] == "   and 5 more: kvtrace info lists all"
    assert rows[24] == " checking"


def test_notes_are_listed_and_made_safe(trace):
    trace.source.notes += [
        Note("bookmark", "\x1b[2Jlook", step=2),
        Note("chosen", "7", step=1),
        Note("note", "about all"),
    ]
    found = findings.noted(trace)
    assert [(one.step, one.said, one.stops) for one in found] == [
        (2, "␛[2Jlook", True),
        (None, "about all", False),
    ]


def test_what_was_not_compared_is_no_bug_and_stands_behind_those_that_are(trace):
    trace.source.notes += [
        Note("finding", "UNKNOWN: layers.0: rows are others; lane not compared there", site=0),
        Note("finding", "MASK: planted", step=2),
    ]
    found = findings.noted(trace)
    assert [(one.sign, one.name, one.said) for one in found] == [
        ("✗", "finding", "MASK: planted"),
        ("·", "not compared", "layers.0: rows are others; lane not compared there"),
    ]


def test_lanes_that_are_apart_as_they_are_made_to_be_are_not_called_equal_alone():
    known = Found(3, "DTYPE", "4 bits", means="the cache keeps rounded rows")
    note = Found(None, "note", "the model is odd")
    for found, words_of_it in (
        ([known], ", but for what is no bug · 1 remark"),
        ([note], " · 1 remark"),
    ):
        rows = words(answer_rows(Answer("equal within rounding"), found, 80))
        assert rows[1] == f" ✓ equal within rounding{words_of_it}"


def test_a_note_that_says_what_a_check_says_is_listed_once():
    note = Found(3, "finding", "KV-HEADS: 2 instead of 4", layer=1)
    check = Found(3, "KV-HEADS", "2 instead of 4", layer=1, means="other heads")
    assert findings.merged((note,), check) == (check,)


def test_the_cursor_goes_to_the_row_the_head_and_the_feature_that_differ(trace):
    row = plant(trace, 3, 1, 1)
    keys = trace.source.pass_tensors[LANE, 0, Tensor.KEYS, 1]
    keys[0, 1, row, 5] += 40
    cursor = show_found(moves.start(trace), trace, Found(3, "X", "", layer=1, tensor="k"))
    assert (cursor.step, cursor.layer, cursor.head, cursor.row, cursor.dim) == (3, 1, 2, row, 5)
    assert cursor.view is View.ABSOLUTE


def test_a_slot_is_found_among_the_rows(trace):
    found = Found(3, "X", "", layer=1, tensor="v", slot=6)
    assert show_found(moves.start(trace), trace, found).row == 6


def test_a_finding_about_the_mask_changes_no_view(trace):
    found = Found(0, "MASK", "", layer=2, tensor="mask", row=3)
    cursor = show_found(moves.start(trace), trace, found)
    assert (cursor.step, cursor.layer, cursor.query, cursor.view) == (0, 2, 3, View.VALUE)


def test_a_finding_that_names_places_beyond_the_trace_stays_inside_it(trace):
    wild = Found(99, "X", "", layer=77, head=88, tensor="k", row=10**9, sequence=5)
    cursor = show_found(moves.start(trace), trace, wild)
    assert cursor == moves.clamp(cursor, trace)
    assert np.isfinite(cursor.row)


def test_a_finding_is_listed_with_its_meaning_and_cause():
    one = Found(3, "DTYPE", "off by 2e-3", 1, None, "k", means="rows are rounded",
                cause="a smaller type", code="model.py:7", grave=True)  # fmt: skip
    text = "\n".join(words(found_rows(one, 80, False)))
    assert "✗ DTYPE  step 3, layer 1, k" in text
    for part in ("off by 2e-3", "rows are rounded", "usual cause  a smaller type", "model.py:7"):
        assert part in text


def test_the_list_counts_bugs_and_remarks_apart_as_the_status_line_does():
    bug = Found(3, "DTYPE", "off by 2e-3", means="rows are rounded", grave=True)
    note = Found(None, "note", "the model is odd")
    for found, count in (([bug, note], "1 finding · 1 remark"), ([note, note], "2 remarks")):
        rows = words(answer_rows(Answer("diverged"), found, 80))
        assert rows[1].endswith(f"diverged · {count}")


def test_a_place_is_said_in_words():
    at = Found(3, "A", "b", layer=1, head=2, tensor="k", slot=7)
    assert at.place == "step 3, layer 1, kv head 2, k, slot 7"
    assert replace(at, tensor="q", slot=None).place == "step 3, layer 1, head 2, q"
    assert Found(None, "A", "b").place == "the whole trace"


def test_what_a_finding_does_not_say_moves_no_cursor(trace):
    at = moves.start(trace)
    assert show_found(at, trace, Found(None, "A", "b")) == at
    assert show_found(at, trace, Found(3, "A", "b")) == moves.to_step(at, trace, 3)


def test_checks_that_stumble_leave_an_answer_and_no_error(trace, monkeypatch):
    def stumbles(*_):
        raise RuntimeError("od\x1b[2Jd")

    monkeypatch.setattr(verdict, "check", stumbles)
    assert findings.search(trace, LANE, print) == Answer("could not check", ("od␛[2Jd",))
