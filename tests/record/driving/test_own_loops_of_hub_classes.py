"""Classes on top of transformers whose own generation says how they are called."""

import pytest

from builders.driven import run_file
from builders.people import HERE

MINE = f"""
import sys
sys.path.append({str(HERE)!r})
import torch
from parts import Core, length
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

class Config(PretrainedConfig):
    model_type = "mine"

class Mine(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.core = Core()

    def forward(self, input_ids=None, past_key_values=None, use_cache=False, **more):
        start = more.get("start_pos", 0)
        logits, rows = self.core.grown(input_ids, past_key_values, start)
        return CausalLMOutputWithPast(logits=logits, past_key_values=rows if use_cache else None)

    GENERATE

def build():
    return Mine(Config(vocab_size=256))
"""

GENERATE = """
    def generate(self, input_ids, max_new_tokens=64):
        out = self(input_ids, use_cache=True)
        while WHILE:
            ids = out.logits[:, -1:].argmax(-1)
            input_ids = torch.cat((input_ids, ids), 1)
            out = self(ids, past_key_values=out.past_key_values, use_cache=True, PLACE)
        return input_ids
"""


@pytest.fixture
def mine(tmp_path):
    def driven(place, loop="input_ids.shape[1] < max_new_tokens"):
        generate = "" if place is None else GENERATE
        filled = generate.replace("PLACE", place or "").replace("WHILE", loop)
        file = tmp_path / "mine.py"
        file.write_text(MINE.replace("    GENERATE\n", filled))
        return run_file(f"{file}:build").driven

    return driven


def test_a_position_that_only_their_loop_passes_goes_in_through_any_arguments(mine):
    driven = mine("start_pos=input_ids.shape[1] - 1")
    assert "start_pos=start" in driven.call
    assert "as its own code does" in driven.said[0]
    assert len(driven.said) == 1


def test_a_wrong_position_that_their_loop_passes_is_not_driven_around(mine):
    driven = mine("start_pos=1")
    assert "as its own code does" not in driven.said[0]


def test_what_a_loop_calls_the_number_of_new_tokens_may_count_the_prompt(mine):
    counted = mine("start_pos=input_ids.shape[1] - 1", "input_ids.shape[1] < max_new_tokens - 1")
    assert "start_pos=start" in counted.call


@pytest.mark.parametrize("place", ["", None])
def test_a_class_whose_loop_says_nothing_more_is_called_as_transformers_does(mine, place):
    assert mine(place).call == "model(input_ids, past_key_values=cache, use_cache=True)"
