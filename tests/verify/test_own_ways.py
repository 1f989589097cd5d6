"""People's own models are tried in every way that can be found, without being asked."""

import pytest
import torch
from torch import Tensor, nn

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL, UNCHECKED
from kvtrace.analysis.checks.report import Finding, Report
from kvtrace.analysis.checks.whole_run.one_at_a_time import excused

PROMPT = [5, 9, 30, 7, 21, 14, 2, 12, 3, 17]
WIDTH, VOCABULARY = 32, 40


class Lm(nn.Module):
    """One layer; its cache is a pair of tensors, its mask stands where the cached rows end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(64, WIDTH)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.qkv.weight.data *= 3

    def forward(self, ids: Tensor, past: tuple[Tensor, Tensor] | None = None):
        new, length = ids.shape[1], 0 if past is None else past[0].shape[2]
        x = self.tokens(ids) + self.wpe(self.places(length, new))
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = (torch.cat([old, one], 2) for old, one in zip(past, (k, v), strict=True))
        k, v = self.kept(k, v)
        hidden = torch.ones(new, length + new, dtype=torch.bool).triu(self.diagonal(length, new))
        scores = (q @ k.mT / 8**0.5).masked_fill(hidden, -torch.inf)
        y = scores.softmax(-1) @ v
        return self.head(x + y.transpose(1, 2).flatten(2)), (k, v)

    def places(self, length: int, new: int) -> Tensor:
        return torch.arange(length, length + new)

    def diagonal(self, length: int, new: int) -> int:
        return length + 1

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k, v


class RoundedPlaces(Lm):
    """A chunk begins at a multiple of its size."""

    def places(self, length: int, new: int) -> Tensor:
        return torch.arange(new) + length // new * new


class Unhidden(Lm):
    """Hides nothing once it holds rows, as a single token needs nothing hidden."""

    def diagonal(self, length: int, new: int) -> int:
        return length + (new if length else 1)


class LastRow(Lm):
    """Keeps one row of what it is given on top of others: that of a step."""

    def forward(self, ids: Tensor, past: tuple[Tensor, Tensor] | None = None):
        new, length = ids.shape[1], 0 if past is None else past[0].shape[2]
        x = self.tokens(ids) + self.wpe(self.places(length, new))
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = (
                torch.cat([old, one[:, :, -1:]], 2) for old, one in zip(past, (k, v), strict=True)
            )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return self.head(x + y.transpose(1, 2).flatten(2)), (k, v)


class FirstRows(Lm):
    """All sequences go on with the values of the first one."""

    def kept(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k, torch.cat([v[:1, :, :-1].expand_as(v[:, :, :-1]), v[:, :, -1:]], 2)

    def forward(self, ids: Tensor, past: tuple[Tensor, Tensor] | None = None):
        kept = FirstRows.kept if past is not None else Lm.kept
        self.__dict__["kept"] = kept.__get__(self)
        return super().forward(ids, past)


class Feeding(Lm):
    """Feeds the whole text to a cache that holds it already."""

    def generate(self, ids: Tensor, max_new_tokens: int) -> Tensor:
        past = None
        for _ in range(max_new_tokens):
            logits, past = self(ids, past)
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        return ids


class Listed(Feeding):
    def generate(self, ids: list[int], max_new_tokens: int) -> Tensor:
        return super().generate(torch.tensor([[*ids]]), max_new_tokens)


class Endless(Lm):
    def generate(self, ids: Tensor, max_new_tokens: int) -> Tensor:
        while True:
            self(ids)


class OneByOne(Lm):
    """Refuses more than one token once its cache is turned on, which it keeps inside."""

    past: tuple[Tensor, Tensor] | None = None

    def forward(self, ids: Tensor, decode: bool = False) -> Tensor:
        if not decode:
            return super().forward(ids)[0]
        if ids.shape[1] > 1:
            raise ValueError("one token at a time")
        logits, self.past = super().forward(ids, self.past)
        return logits

    def reset_cache(self) -> None:
        self.past = None


class Late(OneByOne):
    def diagonal(self, length: int, new: int) -> int:
        return length + (new > 1 or not length)


class Split(Lm):
    """Its forward keeps nothing; two methods decode, in room that is made for a longest text."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids)[0]

    def init_cache(self, batch_size: int, max_text_len: int) -> list[Tensor]:
        return [torch.empty(batch_size, 4, max_text_len, 8) for _ in range(2)]

    def prefill(self, ids: Tensor, kv_cache: list[Tensor]) -> Tensor:
        return self.extended(ids, kv_cache, 0)

    def decode_step(self, ids: Tensor, kv_cache: list[Tensor], start_pos: int) -> Tensor:
        return self.extended(ids.view(-1, 1), kv_cache, start_pos)

    def extended(self, ids: Tensor, room: list[Tensor], length: int) -> Tensor:
        past = (room[0][:, :, :length], room[1][:, :, :length]) if length else None
        logits, rows = Lm.forward(self, ids, past)
        for one, made in zip(room, rows, strict=True):
            one[:, :, : made.shape[2]] = made
        return logits


class Incremental(Lm):
    """Takes the newest token itself once it is handed a dictionary; their number places it."""

    def get_incremental_state(self, incremental_state: dict, name: str):
        return incremental_state.get(name)

    def forward(self, prev_output_tokens: Tensor, incremental_state: dict | None = None):
        if incremental_state is None:
            return Lm.forward(self, prev_output_tokens)[0], {}
        self.length = prev_output_tokens.shape[1]
        past = self.get_incremental_state(incremental_state, "past")
        logits, incremental_state["past"] = Lm.forward(self, prev_output_tokens[:, -1:], past)
        return logits, {}

    def places(self, length: int, new: int) -> Tensor:
        return torch.arange(new) if new > 1 else torch.tensor([self.length - 1])


class Behind(Incremental):
    """Its positions stand still after the first tokens."""

    def places(self, length: int, new: int) -> Tensor:
        return Incremental.places(self, length, new).clamp(max=10 if new == 1 else 63)


def checked(model: Lm, **more: object):
    return kvtrace.check(model.eval(), PROMPT, new_tokens=4, **more)


def trial(report, beginning: str):
    return next(one for one in report.trials if one.name.startswith(beginning))


def test_a_healthy_model_is_equal_in_every_way_that_was_found():
    report = checked(Lm())
    assert report.verdict == EQUAL, report
    assert trial(report, "chunked prefill").report.verdict == EQUAL
    assert trial(report, "batch of 2").report.verdict == EQUAL


def test_what_is_wrong_in_chunks_only_is_found_unasked():
    first = checked(RoundedPlaces()).findings[0]
    assert (first.name, first.step, first.layer) == ("POSITION-EMBEDDING", 1, 0)


def test_a_model_that_hides_nothing_of_several_tokens_is_not_blamed_for_it():
    report = checked(Unhidden())
    assert report.verdict == EQUAL, report
    assert [(one.name, one.kind.bug) for one in report.findings] == [("MASK-FUTURE", False)]
    assert "as long as it is given one at a time" in str(report)
    assert checked(Unhidden(), ways=["chunks"]).verdict == DIVERGED


def test_a_model_that_keeps_one_row_of_several_tokens_is_not_blamed_for_it():
    report = checked(LastRow())
    assert report.verdict == EQUAL, report
    assert not any(one.kind.bug for one in report.findings)
    assert checked(LastRow(), ways=["chunks"]).verdict == DIVERGED


@pytest.mark.parametrize(
    ("name", "step", "verdict"),
    [("UNKNOWN", 1, UNCHECKED), ("UNKNOWN", 0, DIVERGED), ("POSITION-ROPE", 1, DIVERGED)],
)
def test_what_no_signature_fits_is_no_fault_where_several_tokens_go_on(
    name, step, verdict, tmp_path
):
    checked(Lm(), ways=["chunks"], keep=tmp_path)
    found = Finding(name, step, 0, "q", "q is off by 0.5 of its largest")
    trace = kvtrace.open(tmp_path / "chunks.kvt")
    assert excused(trace, Report(DIVERGED, (found,))).verdict == verdict


def test_a_model_that_refuses_prompts_is_given_one_token_after_the_other():
    report = checked(OneByOne())
    assert report.verdict == EQUAL, report
    assert "one token at a time" in trial(report, "chunked prefill").report.reason
    first = checked(Late()).findings[0]
    assert (first.step, first.tensor) == (1, "mask")


def test_a_model_that_takes_the_newest_of_all_tokens_is_given_one_more_at_a_time():
    report = checked(Incremental())
    assert report.verdict == EQUAL, report
    assert trial(report, "batch of 2").report.verdict == EQUAL
    assert "one token at a time" in trial(report, "chunked prefill").report.reason
    first = checked(Behind()).findings[0]
    assert (first.name, first.step) == ("POSITION-EMBEDDING", 11)


def test_sequences_that_share_rows_are_found_in_a_batch():
    first = checked(FirstRows()).findings[0]
    assert (first.name, first.sequences) == ("WRONG-BATCH-ROW", (1,))


def test_a_batch_goes_on_by_the_method_for_single_tokens():
    report = checked(Split())
    assert report.verdict == EQUAL, report
    assert trial(report, "batch of 2").report.verdict == EQUAL


def test_a_loop_of_its_own_is_run_as_it_is():
    report = checked(Feeding())
    assert report.verdict == DIVERGED
    assert (report.findings[0].name, report.findings[0].step) == ("DUPLICATE-ROWS", 1)


def test_a_loop_that_takes_a_list_of_ids_is_run_too():
    assert checked(Listed()).findings[0].name == "DUPLICATE-ROWS"


def test_a_loop_that_does_not_end_is_left_out():
    report = checked(Endless())
    assert "no method or function that generates" in trial(report, "its own loop").report.reason


def test_a_generate_of_its_own_is_not_said_to_be_none():
    class Writes(Lm):
        def generate(self, ids, new):
            logits, past = self(ids)
            for _ in range(new):
                last = logits[:, -1:].argmax(-1)
                ids = torch.cat((ids, last), 1)
                logits, past = self(last, past)
            return ids

    trials = kvtrace.check(Writes().eval(), [PROMPT], new_tokens=2).trials
    (beams,) = (one for one in trials if one.name == "3 beams")
    assert beams.report.reason == "it has no generate that searches with beams"


class Terse(Lm):
    """Refuses several tokens once it holds rows, without a word."""

    def places(self, length: int, new: int) -> Tensor:
        if length and new > 1:
            raise AssertionError
        return super().places(length, new)


def test_a_refusal_without_words_is_told_by_its_line():
    chunks = trial(kvtrace.check(Terse().eval(), PROMPT, new_tokens=3), "chunked prefill")
    assert chunks.report.reason.startswith("AssertionError (test_own_ways.py:")
