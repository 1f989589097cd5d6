"""Which argument of a call holds the token ids, whatever somebody called it."""

import pytest
import torch
from torch import nn

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks.report import EQUAL
from kvtrace.analysis.checks.verdict import check
from kvtrace.record.capture.tokens.inputs import tokens_in

IDS = torch.tensor([[3, 1, 4]])


@pytest.mark.parametrize("name", ["input_vocab_indexes", "start_tokens", "token_indices"])
def test_ids_are_found_under_names_that_speak_of_places_too(name):
    found = tokens_in({name: IDS})
    assert found is not None
    assert found[0] == name


@pytest.mark.parametrize("name", ["attention_mask", "position_ids", "token_type_ids", "labels"])
def test_whole_numbers_that_are_no_ids_are_none(name):
    assert tokens_in({name: IDS}) is None


def test_complex_rotations_are_no_ids():
    assert tokens_in({"x": torch.zeros(1, 3, 4), "freqs_cis": torch.ones(3, 2) * 1j}) is None


def test_indexes_beside_ids_are_not_taken_for_them():
    found = tokens_in({"layer_index": IDS, "start_index": IDS + 1, "x": IDS + 2})
    assert found is not None
    assert found[0] == "x"


@pytest.mark.parametrize("places", [torch.arange(5, 8), torch.arange(3)[None], torch.ones(1, 1)])
def test_numbers_that_count_the_rows_before_them_are_no_ids(places):
    rows = torch.randn(1, places.shape[-1], 4)
    assert tokens_in({"x": rows, "places": places.long()}) is None


@pytest.mark.parametrize(
    ("name", "numbers"), [("tokens", [[3, 4, 5]]), ("places", [[3, 1, 4]]), ("places", [[3, 4]])]
)
def test_numbers_beside_rows_that_do_not_count_them_are_ids(name, numbers):
    found = tokens_in({"hidden": torch.randn(1, 3, 4), name: torch.tensor(numbers)})
    assert found is not None
    assert found[0] == name


def test_ids_before_the_rows_that_they_are_read_beside_are_ids():
    found = tokens_in({"said": torch.tensor([[3]]), "image": torch.randn(1, 1, 4)})
    assert found is not None
    assert found[0] == "said"


class Mixing(nn.Module):
    """No attention at all: every row is the mean of those up to it."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, x):
        rows = self.embed(x)
        return self.head(rows.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])


def test_all_tokens_again_are_a_decode_step_where_nothing_attends(tmp_path):
    model, tokens = Mixing(), torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        for end in (3, 4, 5):
            model(tokens[:, :end])
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.phase for step in trace] == ["prefill", "decode", "decode"]


def test_a_model_of_several_ids_for_one_position_is_given_all_of_them_again(tmp_path):
    model = tiny_model("musicgen")
    ids = torch.arange(4 * 6).reshape(4, 6)
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        past = model(ids[:, :5], use_cache=True).past_key_values
        model(ids[:, 5:], past_key_values=past, use_cache=True)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.tokens for step in trace] == [((0, 1, 2, 3, 4),), ((5,),)]
    assert check(trace).verdict == EQUAL


@pytest.mark.parametrize("name", ["valid_length", "src_lengths", "seqlens", "x_len"])
def test_how_long_texts_are_is_no_text(name):
    assert tokens_in({"data": torch.zeros(1, 3, 8), name: IDS}) is None
