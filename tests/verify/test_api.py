"""`kvtrace.check` on healthy models, broken ones, and ones that can not be checked."""

import pytest
import torch

import kvtrace
from builders.encoder_decoders import t5
from kvtrace.analysis.checks import DIVERGED, EQUAL, UNCHECKED
from kvtrace.errors import RecordError, UsageError
from verify import bugs

PROMPT = [5, 9, 30, 7, 81, 44, 9, 12]


def test_a_healthy_model_is_equal_in_every_way_it_can_be_driven():
    report = kvtrace.check(bugs.gpt2(), PROMPT, new_tokens=4)
    assert (report.verdict, report.findings) == (EQUAL, ())
    names = [one.name for one in report.trials]
    assert names == [
        "prefill of 8, 3 decode steps",
        "another prompt: prefill of 11, 1 decode step",
        "chunked prefill 3+4+2, 2 decode steps",
        "left-padded batch of 2: prefill of 11, 2 decode steps",
        "3 beams: prefill of 8, 3 decode steps",
    ]
    assert all(one.report.ok for one in report.trials)
    assert "recomputing itself is off from float64 by up to" in report.reason
    kvtrace.assert_cache_consistent(bugs.gpt2(), PROMPT, new_tokens=3, ways=())


def test_an_encoder_decoder_is_driven_in_all_ways():
    report = kvtrace.check(t5(), PROMPT, new_tokens=4)
    assert (report.verdict, report.findings) == (EQUAL, ())
    assert [one.name for one in report.trials] == [
        "encoder over 8, prefill of 1, 3 decode steps",
        "another prompt: encoder over 8, prefill of 1, 1 decode step",
        "encoder over 8, chunked prefill 2+3, 3 decode steps",
        "batch of 2: encoder over 8, prefill of 1, 2 decode steps",
        "3 beams: encoder over 8, prefill of 1, 3 decode steps",
    ]


def test_a_shifted_position_is_named_with_the_step_and_the_layer():
    report = kvtrace.check(bugs.off_by_one(), PROMPT, new_tokens=3)
    first = report.findings[0]
    assert report.verdict == DIVERGED
    assert (first.name, first.step, first.layer, first.tensor) == ("POSITION-ROPE", 1, 0, "q")
    assert "rotated by -1 positions" in first.evidence


def test_what_goes_wrong_with_padding_only_is_found_in_the_padded_batch_only():
    report = kvtrace.check(bugs.unmasked(), PROMPT, new_tokens=3)
    assert [one.report.verdict for one in report.trials] == [EQUAL, EQUAL, EQUAL, DIVERGED, EQUAL]
    (found,) = report.findings
    assert (found.name, found.sequences) == ("PAD-VISIBLE", (1,))


def test_an_assertion_says_all_of_it():
    with pytest.raises(AssertionError) as caught:
        kvtrace.assert_cache_consistent(bugs.off_by_one(), PROMPT, new_tokens=2, ways=())
    told = str(caught.value)
    assert told.startswith("diverged: queries are rotated to another position (POSITION-ROPE)")
    assert "off by one" in told
    assert "keep='some folder'" in told


def test_traces_stay_where_they_are_wanted(tmp_path):
    report = kvtrace.check(
        bugs.off_by_one(), PROMPT, new_tokens=2, ways=["again"], keep=tmp_path / "kept"
    )
    traces = [tmp_path / "kept" / name for name in ("decode.kvt", "again.kvt")]
    assert [one.trace for one in report.trials] == [str(path) for path in traces]
    assert all(len(kvtrace.open(path)) for path in traces)
    assert f"kvtrace open {traces[0]} --at 1/0/0/q" in str(report)


def test_a_recurrent_model_has_nothing_to_check():
    report = kvtrace.check(bugs.recurrent(), PROMPT, new_tokens=2)
    assert report.verdict == UNCHECKED
    assert "no KV cache" in str(report)
    with pytest.raises(RecordError, match="no KV cache"):
        kvtrace.assert_cache_consistent(bugs.recurrent(), PROMPT, new_tokens=2)


def test_prompts_are_text_ids_or_tensors_one_or_several():
    def words(text):
        return {"input_ids": [len(word) for word in text.split()]}

    model = bugs.gpt2()

    def starts(prompts, **options):
        report = kvtrace.check(model, prompts, new_tokens=2, ways=(), **options)
        assert report.ok
        return [one.name for one in report.trials]

    assert starts("one two three", tokenizer=words) == ["prefill of 3, 1 decode step"]
    assert starts(torch.tensor(PROMPT)) == ["prefill of 8, 1 decode step"]
    assert starts([PROMPT, PROMPT[:3]]) == [
        "prefill of 8, 1 decode step",
        "prefill of 3, 1 decode step",
    ]
    assert len(starts(torch.tensor([PROMPT, PROMPT]))) == 2


def test_several_prompts_make_the_batch():
    report = kvtrace.check(bugs.gpt2(), [PROMPT, PROMPT[:3]], new_tokens=2, ways=["padded"])
    assert report.trials[-1].name == "left-padded batch of 2: prefill of 8, 2 decode steps"


def test_a_loop_of_ones_own_is_checked_as_it_runs():
    model = bugs.off_by_one()

    def loop():
        with torch.no_grad():
            first = model(input_ids=torch.tensor([PROMPT]), use_cache=True)
            model(input_ids=torch.tensor([[4]]), past_key_values=first.past_key_values)

    report = kvtrace.check(model, run=loop)
    assert [one.name for one in report.trials] == ["prefill of 8, 1 decode step"]
    assert report.findings[0].name == "POSITION-ROPE"


def test_the_model_is_as_it_was():
    model = bugs.gpt2()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    hooks = [len(one._forward_hooks) for one in model.modules()]
    kvtrace.check(model, PROMPT, new_tokens=2)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert hooks == [len(one._forward_hooks) for one in model.modules()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give prompts, or run="),
        (([],), "no prompt was given"),
        (([[3], []],), "prompt 1 has no tokens"),
        (("text",), "there is no tokenizer"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        kvtrace.check(bugs.gpt2(), *arguments)


def test_an_unknown_way_is_named_with_those_there_are():
    with pytest.raises(UsageError, match="'swim'; there are again, chunks, padded, beams"):
        kvtrace.check(bugs.gpt2(), PROMPT, ways=["swim"])
    with pytest.raises(UsageError, match="found str"):
        kvtrace.check("gpt2", PROMPT)


def test_rows_of_beams_that_change_places_are_all_kept(tmp_path):
    kvtrace.check(bugs.gpt2(), PROMPT, new_tokens=2, ways=["beams"], keep=tmp_path)
    trace = kvtrace.open(tmp_path / "beams.kvt")
    assert any(event.kind == "reorder" for step in trace for event in step.events)
    assert [len(trace.compared(number).passes) for number in trace.numbers] == [3] * len(trace)


def test_a_model_that_fails_could_not_be_checked_and_is_blamed_by_its_line():
    class Failing(type(bugs.gpt2())):
        def forward(self, *args, **more):
            raise RuntimeError("no such luck")

    report = kvtrace.check(Failing(bugs.gpt2().config).eval(), PROMPT, new_tokens=2)
    assert report.verdict == UNCHECKED
    assert "test_api.py:" in report.reason
    assert "RuntimeError: no such luck" in report.reason


def test_what_a_forward_is_not_written_for_is_told_and_not_blamed_unless_asked_for():
    import importlib

    module = importlib.import_module("kvtrace_fixtures.custom.ring_window")
    report = kvtrace.check(module.build(), PROMPT, new_tokens=4)
    assert report.ok, report
    reasons = [one.report.reason for one in report.trials if one.report.findings]
    assert ["ask for `chunks`" in one for one in reasons] == [True]
    assert [(one.name, one.kind.bug) for one in report.findings] == [("HISTORY-LOST", False)]
    asked = kvtrace.check(module.build(), PROMPT, new_tokens=4, ways=["chunks"])
    assert (asked.verdict, asked.findings[0].name) == (DIVERGED, "HISTORY-LOST")
