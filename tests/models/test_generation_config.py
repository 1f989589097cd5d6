"""What directories say of generating, beside the model."""

import json

import pytest

from kvtrace.models.hub.generation import ends


@pytest.mark.parametrize(
    ("said", "there", "found"),
    [
        ({"eos_token_id": [3, 5]}, {"eos_token_id": 2}, {3, 5}),
        (None, {"eos_token_id": 2}, {2}),
        (None, {"text_config": {"eos_token_id": [7]}}, {7}),
        ({}, {"eos_token_id": 2}, set()),
    ],
)
def test_a_text_ends_where_generate_ends_it(tmp_path, said, there, found):
    (tmp_path / "config.json").write_text(json.dumps(there))
    if said is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert ends(tmp_path) == found


def test_what_generate_would_do_to_the_likeliest_tokens_is_said(child, copy):
    asked = {"no_repeat_ngram_size": 3, "repetition_penalty": 1.0, "num_beams": 4}
    (copy / "generation_config.json").write_text(json.dumps(asked))
    chosen = child.load(str(copy), prompt="Anna").chosen
    assert "asks for no_repeat_ngram_size, num_beams: left out, the likeliest" in chosen


@pytest.mark.parametrize("said", ["null", "[]", "5", '{"max_new_tokens": -1}', "[" * 100_000])
def test_one_with_which_nothing_loads_is_named(child, copy, said):
    (copy / "generation_config.json").write_text(said)
    loaded = child.load(str(copy), prompt="Anna")
    assert loaded.error == "ModelError"
    assert loaded.message.startswith("generation_config.json: no model can be loaded with it (")
