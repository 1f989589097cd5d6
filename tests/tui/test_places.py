import pytest
from msgspec.structs import replace

from kvtrace.errors import UsageError
from kvtrace_tui.desk import moves
from kvtrace_tui.desk.places import find_token, go_to, row_texts


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("4", (4, 0, 0, 5, 0)),
        ("+2", (3, 0, 0, 5, 0)),
        ("-1", (0, 0, 0, 4, 0)),
        ("L2 H3", (1, 2, 3, 5, 0)),
        ("l2h3", (1, 2, 3, 5, 0)),
        ("step 4 layer 1 row 2 dim 7", (4, 1, 0, 2, 7)),
        ("row 0", (1, 0, 0, 0, 0)),
        ("4/2/3", (4, 2, 3, 5, 0)),
        ("4/1/0/keys", (4, 1, 0, 5, 0)),
        ("4/1", (4, 1, 0, 5, 0)),
        ("4/1/0/keys/0", (4, 1, 0, 5, 0)),
    ],
)
def test_places_are_understood(trace, text, place):
    moved = go_to(text, moves.start(trace), trace)
    assert (moved.step, moved.layer, moved.head, moved.row, moved.dim) == place


def test_a_fifth_number_of_a_place_is_a_row_of_the_batch(trace):
    with pytest.raises(UsageError, match="sequence 2: here they go from 0 to 0"):
        go_to("4/1/0/keys/2", moves.start(trace), trace)


@pytest.mark.parametrize("text", ["", "here", "4 or so", "z3", "step", "99999999999999999999"])
def test_what_is_no_place_is_refused(trace, text):
    with pytest.raises(UsageError, match="expected"):
        go_to(text, moves.start(trace), trace)


def test_a_step_that_is_not_there_is_refused_with_the_steps_there_are(trace):
    with pytest.raises(UsageError, match="steps 0 to 6"):
        go_to("7", moves.start(trace), trace)


@pytest.mark.parametrize(
    ("text", "last"),
    [("layer 3", 2), ("H4", 3), ("row 6", 5), ("dim 8", 7), ("1/9/0", 2), ("B1", 0), ("dim -1", 7)],
)
def test_a_place_that_is_not_there_is_refused_with_those_there_are(trace, text, last):
    with pytest.raises(UsageError, match=f"from 0 to {last}"):
        go_to(text, moves.start(trace), trace)


def test_a_token_is_found_from_the_crosshair_on_and_round_again(trace):
    cursor = replace(moves.start(trace), row=0)
    texts = row_texts(cursor, trace)
    found = find_token(texts[3], cursor, trace)
    rows = [row for row, text in enumerate(texts) if texts[3] in text]
    assert found.row == min(row for row in rows if row > 0)
    assert find_token("no such token", cursor, trace) is None
    last = replace(cursor, row=len(texts) - 1)
    assert find_token(texts[0], last, trace).row == next(
        row for row, text in enumerate(texts) if texts[0] in text
    )
