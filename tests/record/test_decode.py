"""Our own loop of decoding: what it chooses, and where it ends."""

from __future__ import annotations

import pytest
import torch

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.record.decode import Choice, Limits, decode
from kvtrace.trace import Ending

IDS = torch.tensor([[7, 3, 21, 9, 30]])


@pytest.fixture(scope="module")
def model():
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    return model


def test_our_own_loop_chooses_what_generate_chooses(model, tmp_path):
    expected = model.generate(IDS, do_sample=False, max_new_tokens=6)[0, 5:].tolist()
    chosen = []
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off") as recording:
        ending = decode(
            model,
            IDS[0].tolist(),
            limits=Limits(new_tokens=6),
            on_token=lambda token: (chosen.append(token), recording.choose(token)),
        )
        recording.end_with(ending)
    assert chosen == expected
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.chosen[0] for step in trace] == expected
    assert trace.ending.reason == "length"


def test_sampling_repeats_with_its_seed(model):
    def run(seed):
        chosen = []
        decode(
            model,
            [7, 3],
            choice=Choice(temperature=1.0, top_k=10, seed=seed),
            limits=Limits(new_tokens=8),
            on_token=chosen.append,
        )
        return chosen

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_the_loop_ends_at_eos_as_asked_for_and_when_the_context_is_full(model):
    first = model.generate(IDS, do_sample=False, max_new_tokens=1)[0, -1].item()
    prompt = IDS[0].tolist()
    ended = decode(model, prompt, limits=Limits(eos=frozenset([first])))
    assert ended.reason == "eos"
    for asked, words in ((0, "0 new tokens"), (1, "1 new token"), (2, "2 new tokens")):
        enough = decode(model, prompt, limits=Limits(new_tokens=asked))
        assert enough == Ending("length", f"{words}, as asked for")
    full = decode(model, prompt, limits=Limits(new_tokens=9, context_length=7))
    assert full.reason == "context full"


def test_a_control_stops_the_loop_and_chooses_tokens(model):
    class Twice:
        left = 3

        def proceed(self):
            self.left -= 1
            return self.left > 0

        def take_token(self):
            return 11 if self.left == 1 else None

    chosen = []
    ending = decode(model, [7, 3], control=Twice(), on_token=chosen.append)
    assert ending.reason == "stopped"
    assert len(chosen) == 2
    assert chosen[1] == 11
