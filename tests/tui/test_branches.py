from msgspec.structs import replace

from builders import synthetic_trace
from kvtrace.analysis.branches import branches, twigs
from kvtrace_tui.drawing import ink
from kvtrace_tui.screens.pages.branches import branch_rows


def drawn(trace, at=(0, 0), width=80, chosen=0):
    tree = branches(trace)
    node = tree.places[at]
    rows = branch_rows(trace, tree, twigs(tree), node, width, chosen)
    return [row for row in rows if row[1] >= 0]


def text(row):
    return "".join(words for words, _ in row[0])


def test_each_line_of_the_tree_is_a_choice_with_its_steps():
    trace = synthetic_trace()
    for number, step in list(trace.source.steps.items()):
        tokens = step.tokens * 2 if number < 3 else ((3,), (1,))
        trace.source.steps[number] = replace(
            step, tokens=tokens, positions=step.positions * 2, chosen=(None, None)
        )
    rows = drawn(trace, (4, 1))
    assert [owner for _, owner in rows] == [0, 1, 2]
    assert "B0 steps 0–2" in text(rows[0])
    assert text(rows[1]).strip().startswith("├╴·has│·has")
    assert "■ B1 steps 3–6" in text(rows[1])
    assert "B0 steps 3–6" in text(rows[2])
    lit = [words for words, style in rows[1][0] if style is ink.CHOSEN]
    assert lit == ["·has"]


def test_a_line_that_is_too_long_says_how_much_is_left_out():
    (row,) = drawn(synthetic_trace(), width=40)
    assert "… +" in text(row)
    assert len(text(row)) <= 40


def test_hostile_tokens_are_made_safe():
    trace = synthetic_trace()
    trace.source.texts = dict.fromkeys(range(12), "\x1b[2J")
    assert "\x1b" not in "".join(map(text, drawn(trace)))


def test_a_text_that_ended_before_another_was_not_given_up():
    trace = synthetic_trace()
    for number in (3, 4, 5, 6):  # another text, begun after the first had ended
        step = trace.step(number)
        trace.source.steps[number] = replace(step, parent=None if number == 3 else number - 1)
    rows = drawn(trace)
    assert [" ■ B0 steps 0–2" in text(rows[0]), " ■ B0 steps 3–6" in text(rows[1])] == [True, True]


def test_a_branch_that_another_of_its_text_outlives_was_given_up():
    trace = synthetic_trace()
    for number in (3, 4, 5, 6):
        step = trace.step(number)
        other = replace(step, parent=1 if number == 3 else number - 1, tokens=((7,),))
        trace.source.steps[number] = other
    lines = [text(row) for row in drawn(trace)]
    assert [line for line in lines if "✕" in line] == [line for line in lines if "step 2" in line]
    assert sum("■" in line for line in lines) == 1


def test_the_pass_of_an_encoder_is_called_so():
    trace = synthetic_trace()
    meta = trace.meta
    encoders = tuple(replace(site, kind="encoder") for site in meta.sites)
    trace.source.meta = replace(meta, sites=encoders)
    assert " ■ B0 encoder steps 0–6" in text(drawn(trace)[0])
