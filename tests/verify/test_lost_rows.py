"""Caches that lose their newest rows between steps: every step alone is right, the text is not."""

import pytest
import torch

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks import DIVERGED, EQUAL
from kvtrace_fixtures.custom import einsum_heads, tuple_cat
from verify import bugs

PROMPT = [5, 9, 30, 7, 81, 44, 9, 12]


class Kept(tuple_cat.GPT):
    """Gives back the past that it was given."""

    def forward(self, idx, past=None):
        logits, presents = super().forward(idx, past)
        return logits, past or presents


class Replaced(einsum_heads.EinsumLM):
    """Begins its cache anew in every call."""

    def forward(self, tokens, use_cache=False):
        self.reset_cache()
        return super().forward(tokens, use_cache)


def made(of):
    torch.manual_seed(3)
    return of().eval()


def first(report):
    (found,) = report.findings
    return found.name, found.step, found.layer


def test_a_past_that_is_never_renewed_loses_every_row_after_the_prompt():
    report = kvtrace.check(made(Kept), PROMPT, new_tokens=6, ways=())
    assert (report.verdict, first(report)) == (DIVERGED, ("HISTORY-LOST", 2, 0))
    assert "fed the likeliest token after step 1, but its cache begins with only 8 rows" in (
        report.findings[0].evidence
    )


def test_a_cache_that_is_replaced_in_every_step_is_no_model_without_one():
    report = kvtrace.check(made(Replaced), PROMPT, new_tokens=6, ways=())
    assert (report.verdict, first(report)) == (DIVERGED, ("HISTORY-LOST", 1, 0))
    assert "its cache is empty: 8 rows are missing" in report.findings[0].evidence


class Repeating(Kept):
    """Prefers one token everywhere."""

    def forward(self, idx, past=None):
        logits, past = super().forward(idx, past)
        logits[..., 7] += 100
        return logits, past


def test_a_past_that_is_never_renewed_shows_though_one_token_repeats():
    report = kvtrace.check(made(Repeating), PROMPT, new_tokens=6, ways=())
    assert (report.verdict, first(report)) == (DIVERGED, ("HISTORY-LOST", 2, 0))


@torch.no_grad()
def answers(model, tokens):
    """What may follow one prompt, tried one after another on the same rows."""
    _, past = model(torch.tensor([PROMPT]))
    for token in tokens:
        model(torch.tensor([[token]]), past)


def test_answers_that_are_tried_on_one_prompt_lose_nothing():
    model = made(tuple_cat.GPT)
    report = kvtrace.check(model, run=lambda: answers(model, (3, 77, 140)))
    assert (report.verdict, report.findings, report.caveats) == (EQUAL, (), ())


def test_many_answers_in_a_row_may_be_one_text_and_that_is_said():
    model = made(tuple_cat.GPT)
    report = kvtrace.check(model, run=lambda: answers(model, (3, 77, 140, 21)))
    assert (report.verdict, report.findings) == (EQUAL, ())
    assert report.caveats[0].startswith("3 steps of one token each begin without the row")


@torch.no_grad()
def timed(model, token):
    """One step many times: its token is the likeliest after itself."""
    past = model(torch.tensor([PROMPT]), use_cache=True).past_key_values
    for _ in range(4):
        model(torch.tensor([[token]]), past_key_values=past)
        past.crop(-1)


def test_a_step_that_is_repeated_loses_nothing():
    model = bugs.gpt2()
    logits = model(torch.tensor([[*PROMPT, 77]])).logits[0, -1]
    head = model.lm_head
    model.lm_head = torch.nn.Linear(head.in_features, head.out_features)
    model.lm_head.weight.data[:] = head.weight.data
    model.lm_head.bias.data[:] = -logits.detach()
    model.lm_head.bias.data[77] += 100
    report = kvtrace.check(model, run=lambda: timed(model, 77))
    assert (report.verdict, report.findings) == (EQUAL, ())


def test_a_window_that_slides_on_loses_nothing():
    model = tiny_model("mistral", seed=3)
    tokens = torch.tensor([PROMPT[:6] * 2])
    report = kvtrace.check(
        model,
        run=lambda: model.generate(
            tokens, prompt_lookup_num_tokens=3, max_new_tokens=12, pad_token_id=0
        ),
    )
    assert (report.verdict, report.findings) == (EQUAL, ())


@torch.no_grad()
def decoded(model, back_at, steps=8):
    """A plain loop that crops its newest row once, as an index that is off by one does."""
    logits, past = model(torch.tensor([PROMPT]))
    for step in range(steps):
        if step == back_at:
            past = [(k[:, :, :-1], v[:, :, :-1]) for k, v in past]
        logits, past = model(logits[:, -1:].argmax(-1), past)


@pytest.mark.parametrize("back_at", [0, 4])
def test_a_loop_that_goes_back_once_writes_over_its_newest_row(back_at):
    model = made(tuple_cat.GPT)
    report = kvtrace.check(model, run=lambda: decoded(model, back_at))
    assert first(report) == ("ROW-OVERWRITTEN", back_at + 1, 0)
    assert "every other step goes on after the likeliest too" in report.findings[0].evidence


@torch.no_grad()
def drafted(model):
    """Drafts of a prompt are rejected, for a token that is the likeliest after them as well."""
    prompt = torch.tensor([[*PROMPT, 9, 30]])
    _, past = model(prompt)
    past = [(k[:, :, :-2], v[:, :, :-2]) for k, v in past]
    logits, past = model(model(prompt)[0][:, -1:].argmax(-1), past)
    for _ in range(4):
        logits, past = model(logits[:, -1:].argmax(-1), past)
    model(torch.cat([logits[:, -1:].argmax(-1), torch.tensor([[3, 9]])], 1), past)


def test_drafts_that_are_rejected_lose_nothing_whatever_token_comes_instead():
    model = made(tuple_cat.GPT)
    report = kvtrace.check(model, run=lambda: drafted(model))
    assert (report.verdict, report.findings) == (EQUAL, ())


@torch.no_grad()
def tried_again(model, steps=8):
    """A loop that takes back a token, and goes on with another one."""
    logits, past = model(torch.tensor([PROMPT]))
    for step in range(steps):
        before = past
        likeliest = logits[0, -1].topk(2).indices
        logits, past = model(likeliest[:1, None], before)
        if step == 4:
            logits, past = model(likeliest[1:, None], before)


def test_a_token_that_is_taken_back_for_the_next_best_loses_nothing():
    model = made(tuple_cat.GPT)
    report = kvtrace.check(model, run=lambda: tried_again(model))
    assert (report.verdict, report.findings) == (EQUAL, ())


@torch.no_grad()
def begun_anew(model, prompt, back_at, steps=8):
    """A loop that once begins at position 0 again, as a position that wraps does."""
    logits, past = model(torch.tensor([prompt]))
    for step in range(steps):
        logits, past = model(logits[:, -1:].argmax(-1), None if step == back_at else past)


def test_a_loop_whose_position_wraps_to_zero_loses_its_text():
    model = made(tuple_cat.GPT)
    report = kvtrace.check(model, run=lambda: begun_anew(model, PROMPT, 4))
    assert (report.verdict, first(report)) == (DIVERGED, ("HISTORY-LOST", 5, 0))
    assert "its cache is empty: 12 rows are missing" in report.findings[0].evidence


def test_a_likeliest_token_that_is_timed_alone_after_a_prompt_loses_nothing():
    model = made(tuple_cat.GPT)
    report = kvtrace.check(model, run=lambda: begun_anew(model, PROMPT, 0))
    assert (report.verdict, report.findings) == (EQUAL, ())


@torch.no_grad()
def begun_with(model, token):
    """A text that begins with a token, and one that begins with it after another ended."""
    model(torch.tensor([[token]]))
    begun_anew(model, PROMPT, 4)


def test_texts_that_begin_with_the_token_that_ends_them_lose_nothing():
    model, fed = made(tuple_cat.GPT), []
    with model.register_forward_pre_hook(lambda _, given: fed.append(int(given[0][0, 0]))):
        begun_anew(model, PROMPT, 4)
    report = kvtrace.check(model, run=lambda: begun_with(model, fed[5]))
    assert (report.verdict, report.findings) == (EQUAL, ())


class Blocks(torch.nn.Module):
    """Writes every row to a buffer, and reads whole blocks of four of it alone."""

    whole = True

    def __init__(self):
        super().__init__()
        self.tokens, self.places = torch.nn.Embedding(90, 32), torch.nn.Embedding(40, 32)
        self.qkv, self.head = torch.nn.Linear(32, 96), torch.nn.Linear(32, 90)
        self.held, self.rows = torch.zeros(2, 4, 40, 8), 0

    def forward(self, ids):
        new, end = len(ids), self.rows + len(ids)
        x = self.tokens(ids) + self.places(torch.arange(self.rows, end))
        q, *kv = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(1, 2, 0, 3)
        self.held[:, :, self.rows : end] = torch.stack(kv)
        seen = end // 4 * 4 if self.rows and self.whole else end
        k, v = self.held[:, :, :seen]
        hidden = torch.arange(seen)[None] > torch.arange(self.rows, end)[:, None]
        scores = (q @ k.mT / 8**0.5).masked_fill(hidden, -1e9)
        self.rows = end
        return self.head(x + (scores.softmax(-1) @ v).transpose(0, 1).reshape(new, 32))


class Rows(Blocks):
    """Reads all rows."""

    whole = False


@torch.no_grad()
def written(model, prompt, again=()):
    """Continue a prompt; then go back to places and feed their tokens once more."""
    token = model(torch.tensor(prompt))[-1:].argmax(-1)
    for _ in range(3):
        token = model(token)[-1:].argmax(-1)
    for place in again:
        model.rows = place
        model(torch.tensor(prompt[place : place + 1]))


def test_a_block_that_is_not_full_yet_and_is_not_read_lacks_its_newest_rows():
    model = made(Blocks)
    found = kvtrace.check(model, run=lambda: written(model, PROMPT[:6])).findings[0]
    assert (found.name, found.step, found.layer) == ("EVICTED-EARLY", 1, 0)
    assert "the query of place 6 does not see places 4, 5, 6" in found.evidence


def test_a_token_that_is_fed_once_more_at_its_place_lacks_nothing():
    model = made(Rows)
    report = kvtrace.check(model, run=lambda: written(model, PROMPT, again=(5, 2)))
    assert (report.verdict, report.findings) == (EQUAL, ())
