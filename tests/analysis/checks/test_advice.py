"""What a report says: the answer first, each cause once, foreign strings made safe."""

from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.analysis.checks import DIVERGED, EQUAL, UNCHECKED, Finding, Report
from kvtrace.analysis.checks.advice import headline, lines
from kvtrace.analysis.checks.placed import placed
from kvtrace.analysis.checks.report import Flip, Trial, together

ROPE = Finding(
    "POSITION-ROPE", 7, 3, "q", "q of place 9 = the recomputed q rotated by -1 positions", row=0,
    apart=1.0, limit=2e-5, since="it begins when the sequence has 10 tokens",
    code="layers.3.attn, model.py:12",
)  # fmt: skip
SLOT = Finding("WRONG-SLOT", 8, 1, "k", "slot 4 changed", head=2, slot=4, sequences=(1,))
NTK = Finding("LENGTH-DEPENDENT-POSITIONS", 2, 0, "q", "plane 0 by +0.1")
LARGEST = (("q", 1e-7),)


def equal(**more):
    return Report(EQUAL, reason="float32 rounding", largest=LARGEST, steps=8, logits=8, **more)


def diverged(*findings, **more):
    return Report(DIVERGED, findings, "float32 rounding", steps=8, logits=8, **more)


def text(report, **options):
    return "\n".join(lines(report, **options))


def test_the_first_line_is_the_answer():
    assert headline(equal()) == "equal within rounding (8 steps compared)"
    assert headline(equal(findings=(NTK,))) == (
        "equal within rounding, but for what is no bug (8 steps compared)"
    )
    assert (
        headline(Report(UNCHECKED, reason="it has no cache")) == "could not check: it has no cache"
    )
    assert headline(diverged(ROPE)) == (
        "diverged: queries are rotated to another position (POSITION-ROPE) at step 7, layer 3, "
        "queries"
    )


def test_a_place_names_kv_head_slot_and_batch_row():
    assert headline(diverged(SLOT)).endswith(
        "at step 8, layer 1, kv head 2, keys, slot 4, only batch row 1"
    )


def test_a_place_to_look_at_is_of_the_head_and_sequence_that_show_it():
    assert SLOT.at == "8/1/2/k/1"
    assert replace(SLOT, group=3, sequences=(0, 1)).at == "8/1/6/k"
    assert replace(ROPE, group=3, head=2).at == "7/3/2/q"
    grouped = synthetic_trace(Shape(heads=6, kv_heads=2))
    assert placed(grouped, replace(SLOT, step=3, head=1), None, None).at == "3/1/3/k/1"


def test_a_finding_says_where_how_far_why_and_how_to_see_it():
    told = text(together([Trial("decode", diverged(ROPE), "my.kvt")]), width=200)
    for part in (
        "rotated by -1 positions. It begins when the sequence has 10 tokens.",
        "Off by 1 of the largest number; rounding explains 2e-05.",
        "layers.3.attn, model.py:12 and the position it is given",
        "kvtrace open my.kvt --at 7/3/0/q",
        "usual cause  The position passed",
    ):
        assert part in told


def test_a_cause_that_every_run_shows_is_explained_once():
    trials = [Trial("decode", diverged(ROPE)), Trial("chunked", diverged(ROPE, SLOT))]
    told = text(together(trials))
    assert told.count("usual cause") == 2
    assert told.count("rotated by -1") == 1
    assert "chunked  diverged: POSITION-ROPE at step 7, layer 3" in told
    assert text(together(trials), verbose=True).count("rotated by -1") == 2


def test_a_true_difference_is_explained_and_is_no_bug():
    told = text(together([Trial("decode", equal(findings=(NTK,)))]))
    assert told.startswith("equal within rounding")
    assert f"\n  no bug: {NTK.kind.means} (LENGTH-DEPENDENT-POSITIONS) at step 2" in told
    assert "why          Dynamic NTK, longrope or xPos" in told


def test_a_flip_within_rounding_is_called_a_coin_toss():
    told = text(equal(flips=(Flip(4, 0, 0.0003, 0.0005),)))
    assert "At step 4 the lanes prefer different tokens" in told
    assert "coin toss" in told


def test_text_is_only_said_to_hide_it_where_every_logit_was_compared():
    claim = "comparing text does not show this"
    assert claim in text(diverged(ROPE)).replace("\n", " ")
    some = Report(DIVERGED, (ROPE,), "float32 rounding", steps=8, logits=7)
    assert claim not in text(some).replace("\n", " ")
    assert "changes the likeliest token at step 5" in text(
        diverged(ROPE, flips=(Flip(5, 0, 0.1, 2.0),))
    )


def test_one_run_that_is_not_possible_leaves_the_verdict_to_the_others():
    no = Report(UNCHECKED, reason="it has no generate")
    told = together([Trial("decode", equal()), Trial("3 beams", no, essential=False)])
    assert told.verdict == EQUAL
    assert "3 beams  not possible here: it has no generate" in text(told)
    assert together([Trial("decode", no), Trial("chunked", equal(), essential=False)]).verdict == (
        UNCHECKED
    )
    assert together([Trial("decode", no), Trial("more", diverged(ROPE))]).verdict == DIVERGED


def test_a_long_reason_ends_between_words_in_the_list_of_runs():
    reason = "given several tokens, a query sees later tokens (MASK-FUTURE) " + "and more " * 20
    told = together(
        [
            Trial("decode", equal()),
            Trial("chunks", Report(UNCHECKED, reason=reason), essential=False),
        ]
    )
    (line,) = (one for one in lines(told) if "not possible here" in one)
    assert line.endswith((" and …", " more …"))
    assert " ".join(["and more"] * 20) in text(told, verbose=True)


def test_a_way_that_the_model_is_not_made_for_counts_in_no_number():
    no = Report(
        UNCHECKED,
        reason="it takes one token at a time",
        largest=(("k", 2.8),),
        flips=(Flip(5, 0, 0.1, 2.0),),
        steps=5,
        logits=5,
    )
    told = together([Trial("decode", equal()), Trial("chunked", no, essential=False)])
    alone = together([Trial("decode", equal())])
    assert (told.largest, told.flips) == (alone.largest, alone.flips)
    assert (told.steps, told.logits) == (alone.steps, alone.logits)


def test_nothing_run_is_no_pass():
    assert together([]).verdict == UNCHECKED


def test_what_is_not_covered_is_said():
    assert "Mind: 2 modules look like attention" in text(
        equal(caveats=("2 modules look like attention",))
    )


def test_hostile_names_reach_no_terminal():
    hostile = "\x1b[2Jevil\n\u202e"
    found = Finding("UNKNOWN", 0, 0, "q", hostile, code=hostile, since=hostile)
    report = together([Trial(hostile, diverged(found, caveats=(hostile,)), hostile)])
    for verbose in (False, True):
        told = text(report, verbose=verbose)
        assert "\x1b" not in told
        assert "\u202e" not in told
    assert "\x1b" not in text(Report(UNCHECKED, reason=hostile))


def test_a_report_prints_as_the_command_does():
    report = together([Trial("decode", diverged(ROPE))])
    assert str(report).splitlines() == lines(report)


def test_a_prompt_and_a_notebook_show_a_report_in_one_line():
    found = Finding("POSITION-ROPE", 1, 0, "q", "off by one")
    assert repr(Report(DIVERGED, (found,))) == (
        "<Report: diverged: queries are rotated to another position (POSITION-ROPE) "
        "at step 1, layer 0, queries>"
    )
