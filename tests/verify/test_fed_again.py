"""Users' own loops that feed again what the cache still holds."""

import torch
from transformers import DynamicCache

import kvtrace
from kvtrace.analysis.checks import EQUAL
from verify import bugs

TEXT = torch.tensor([[5, 9, 30, 7, 81, 44, 9, 12, 60]])


def checked(drive):
    model = bugs.llama()
    with torch.no_grad():
        return kvtrace.check(model, run=lambda: drive(model))


def test_a_loop_that_feeds_the_whole_text_on_top_of_its_cache_has_every_row_twice():
    def loop(model):
        ids, cache = TEXT, DynamicCache()
        for _ in range(3):
            out = model(ids, past_key_values=cache)
            ids = torch.cat((ids, out.logits[:, -1:].argmax(-1)), 1)

    (found,) = checked(loop).findings
    assert (found.name, found.step) == ("DUPLICATE-ROWS", 1)
    assert "fed all 9 tokens again that the cache still holds, and so were 1 more" in found.evidence


def test_a_conversation_that_is_fed_again_once_is_told_and_not_called_a_bug():
    def chat(model):
        cache = DynamicCache()
        model(TEXT[:, :6], past_key_values=cache)
        model(TEXT[:, 6:7], past_key_values=cache)
        model(TEXT, past_key_values=cache)

    report = checked(chat)
    assert (report.verdict, report.findings) == (EQUAL, ())
    assert any("step 2 was fed all 7 tokens before it again" in one for one in report.caveats)


def test_chunks_of_one_repeated_token_are_fed_once():
    def dummy(model):
        cache = DynamicCache()
        for rows in (3, 6, 12):
            model(torch.ones(1, rows, dtype=torch.long), past_key_values=cache)

    report = checked(dummy)
    assert (report.verdict, report.findings, report.caveats) == (EQUAL, (), ())


def chunks(model, *parts):
    """Feeds parts of the text, each at its own positions."""
    cache = DynamicCache()
    for start, end in parts:
        positions = torch.arange(start, end)[None]
        model(TEXT[:, start:end], past_key_values=cache, position_ids=positions)


def test_a_chunk_that_is_fed_twice_at_its_own_positions_has_its_rows_twice():
    report = checked(lambda model: chunks(model, (0, 3), (3, 7), (3, 7), (7, 9)))
    found = report.findings[0]
    assert (found.name, found.step, found.layer, found.tensor) == ("DUPLICATE-ROWS", 2, 0, "k")
    assert "the 4 tokens of this step are those of positions 3 to 6" in found.evidence


def test_other_tokens_at_positions_that_are_taken_were_counted_wrong():
    def drive(model):
        cache = DynamicCache()
        model(TEXT[:, :5], past_key_values=cache)
        positions = torch.arange(1, 5)[None]
        model(TEXT[:, 5:], past_key_values=cache, position_ids=positions)

    assert checked(drive).findings[0].name == "POSITION-ROPE"


def greedy(model, text, again, steps=5):
    """Feeds the likeliest token, after `again`, once the prompt is there."""
    cache = DynamicCache()
    out = model(text, past_key_values=cache)
    for step in range(steps):
        fed = again if step == 0 and again is not None else out.logits[:, -1:].argmax(-1)
        out = model(fed, past_key_values=cache)


def test_a_prompt_whose_last_token_is_fed_once_more_is_told():
    report = checked(lambda model: greedy(model, TEXT, TEXT[:, -1:]))
    assert (report.verdict, report.findings) == (EQUAL, ())
    assert any(
        "step 1 was fed token 60, as the step before it was last" in one for one in report.caveats
    )


def test_prompts_with_unlike_ends_that_are_fed_once_more_have_a_row_twice():
    def loop(model):
        for text in (TEXT, TEXT[:, :5]):
            greedy(model, text, text[:, -1:])

    (found,) = checked(loop).findings
    assert (found.name, found.step) == ("DUPLICATE-ROWS", 1)
    assert "fed token 60 again, the last one of its prompt, and so were those after 1 other" in (
        found.evidence
    )


def test_a_loop_that_feeds_what_was_chosen_or_something_else_is_silent():
    def sampled(model):
        cache = DynamicCache()
        model(TEXT, past_key_values=cache)
        for token in (60, 7, 81, 3, 5):
            model(torch.tensor([[token]]), past_key_values=cache)

    for drive in (lambda model: greedy(model, TEXT, None), sampled):
        report = checked(drive)
        assert (report.verdict, report.findings, report.caveats) == (EQUAL, (), ())
