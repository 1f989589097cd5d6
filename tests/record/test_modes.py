"""Modes of the program: they are shown what it does, watched or not, and nothing of ours."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import kvtrace
from builders.attentions import DIM, Model, matmul, token_ids, turned, with_sdpa
from builders.tiny_models import tiny_model
from kvtrace.record.modes import FUNCTION_MODES, OPERATOR_MODES, unseen_by_modes


class Functions(TorchFunctionMode):
    """Writes down what it is shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Writes down what it is shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def own_loop(model):
    with torch.no_grad():
        return [model(token_ids(1, 5 + step))[0].argmax().item() for step in range(4)]


def generated(model):
    ids = token_ids(1, 5) % model.config.vocab_size
    return model.generate(ids, max_new_tokens=5, do_sample=False).tolist()


def matmuls():
    return Model(matmul).eval(), own_loop


def fused():
    return Model(with_sdpa).eval(), own_loop


def beside_a_table(q, k, v):
    """Scores of keys, and of a row for each distance."""
    places = torch.arange(k.shape[1])
    far = places - places[-q.shape[1] :, None]
    table = torch.sin(torch.arange(-20.0, 20)[:, None] * torch.arange(1.0, DIM + 1))[far + 20]
    q, k, v = turned(q, k, v)
    scores = q @ k.mT + torch.einsum("bhtd,tsd->bhts", q, table)
    return (scores.masked_fill(far > 0, -1e9).softmax(-1) @ v).transpose(1, 2)


def with_distances():
    return Model(beside_a_table).eval(), own_loop


class Decoder(Model):
    """Called by its name one of two sides: it is asked whose rows it attends to."""


def of_two_sides():
    return Decoder(matmul).eval(), own_loop


class OfRows(nn.Module):
    """Called with rows, which the program looks up, and their places."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(32, 16), nn.Embedding(32, 16)
        self.mix = nn.Linear(16, 48)

    def forward(self, rows, places, past=None):
        x = rows + self.places(places)
        q, k, v = self.mix(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return y.transpose(1, 2).flatten(2) @ self.tokens.weight.T, (k, v)


def loop_of_rows(model):
    ids, past, found = torch.tensor([[3, 1, 4, 1, 5]]), None, []
    with torch.no_grad():
        for start in (0, 5, 6, 7):
            places = torch.arange(start, start + ids.shape[1])[None]
            logits, past = model(model.tokens(ids), places, past)
            ids = logits[:, -1:].argmax(-1)
            found.append(ids.item())
    return found


def given_rows():
    return OfRows().eval(), loop_of_rows


def of_the_hub():
    return tiny_model("llama"), generated


MODELS = pytest.mark.parametrize(
    "make", [matmuls, fused, with_distances, of_two_sides, given_rows, of_the_hub]
)
MODES = pytest.mark.parametrize("mode", [Functions, Operators])
AMBIENT = pytest.mark.parametrize("ambient", [True, False], ids=["whatever runs", "a model"])


@MODELS
@MODES
@AMBIENT
def test_a_mode_of_the_program_is_shown_what_it_is_shown_unwatched(tmp_path, make, mode, ambient):
    model, run = make()
    run(model)  # what a model learns of its first call
    with mode() as alone:
        expected = run(model)
    watched = [] if ambient else [model]
    with kvtrace.record(*watched, tmp_path / "run.kvt"), mode() as inside:
        assert run(model) == expected
    with mode() as around, kvtrace.record(*watched, tmp_path / "again.kvt"):
        assert run(model) == expected
    assert inside.seen == alone.seen
    assert around.seen == alone.seen
    for name in ("run.kvt", "again.kvt"):
        sites = kvtrace.open(tmp_path / name).meta.sites
        assert sites


def test_layers_take_no_fast_path_under_a_mode_that_forbids_it(tmp_path):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    model = nn.Sequential(nn.Embedding(100, 32), nn.TransformerEncoder(layer, 2)).eval()
    ids = token_ids(1, 6)
    with torch.no_grad(), Functions() as alone:
        expected = model(ids)
    with torch.no_grad(), kvtrace.record(model, tmp_path / "run.kvt"), Functions() as watched:
        found = model(ids)
    assert torch.equal(found, expected)
    assert watched.seen == alone.seen


@MODES
def test_modes_are_off_while_we_work_and_back_after_an_error(mode):
    def works():
        with unseen_by_modes():
            assert not stack.is_foreign
            raise KeyError

    stack = FUNCTION_MODES if mode is Functions else OPERATOR_MODES
    with mode() as one, mode() as other:
        with pytest.raises(KeyError):
            works()
        assert stack.lift() == [other, one]
        stack.lower([other, one])
    assert not stack.is_foreign


def test_where_tensors_are_made_is_no_business_of_the_program_alone():
    with torch.device("meta"), Functions(), unseen_by_modes():
        assert torch.zeros(1).is_meta
