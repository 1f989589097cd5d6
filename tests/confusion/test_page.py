"""The page says what was run, and keeps what was not."""

from confusion.page import page, score


def row(name, called, witness=None):
    return {
        "table": "healthy",
        "name": name,
        "planted": "(nothing)",
        "called": called,
        "words": "why",
        "witness": witness,
    }


def test_sections_of_which_nothing_was_run_stay_as_they_were():
    zoo = {"table": "zoo", "name": "a", "planted": "DTYPE", "called": "DTYPE", "placed": True}
    before = page([zoo, row("hub gpt2 plain float32", "(nothing)")])
    after = page([row("hub gpt2 plain float32", "MASK")], before)
    assert "**1 of 1 called by their name**" in after
    assert "**1 false alarms** in 1 runs" in after
    assert page([zoo, row("hub gpt2 plain float32", "MASK")]) == after


def test_only_what_nobody_else_sees_is_a_false_alarm():
    rows = [
        row("hub a plain float32", "MASK", witness=0.2),
        row("hub b plain float32", "MASK", witness=1e-7),
        row("twin c plain float32", "MASK"),
        row("hub d plain float32", "TIE"),
    ]
    assert score(rows)[2] == 2
    assert "`hub a plain float32` (logits 0.2 apart)" in page(rows)


def test_whether_all_is_from_one_run_is_said():
    rows = [row("hub a plain float32", "(nothing)")]
    assert "gathered in one run" in page(rows, whole=True)
    assert "gathered in one run" not in page(rows)
