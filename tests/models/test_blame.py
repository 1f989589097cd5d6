"""A config.json that can't be right: the field is named, with what was found and expected."""

import shutil

import pytest

from builders.folders import edit
from kvtrace_fixtures import BUILT_IN

CASES = {
    "no heads": ("demo", {"n_head": 0}, "n_head: found 0, expected at least 1"),
    "no layers": ("demo", {"n_layer": 0}, "n_layer: found 0, expected at least 1"),
    "no vocabulary": ("demo-gqa", {"vocab_size": 0}, "vocab_size: found 0, expected at least 1"),
    "no width": ("demo-gqa", {"hidden_size": 0}, "hidden_size: found 0, expected at least 1"),
    "heads by which a check of its own divides": (
        "demo-gqa",
        {"num_attention_heads": 0},
        "num_attention_heads: found 0; no model can be built with it (ZeroDivisionError: ",
    ),
    "no kv heads": ("demo-gqa", {"num_key_value_heads": 0}, "num_key_value_heads: found 0; "),
    "heads that do not divide": ("demo", {"n_head": 7}, "n_head: found 7; "),
    "width that does not divide": ("demo", {"n_embd": 95}, "n_embd: found 95; "),
    "an activation nobody knows": (
        "demo-gqa",
        {"hidden_act": "swish9"},
        "hidden_act: found 'swish9'; no model can be built with it (KeyError: 'swish9'), "
        "expected something like the usual 'silu'",
    ),
    "less than no context": (
        "demo",
        {"n_positions": -5},
        "n_positions: found -5; no model can be built with it (RuntimeError: Trying to create "
        "tensor with negative dimension -5: [-5, 96]), expected something like the usual 1024",
    ),
    "a padding token beyond the vocabulary": (
        "demo-gqa",
        {"pad_token_id": 10**7},
        "expected something like the usual none",
    ),
    "a part of a part": (
        "demo-gqa",
        {"rope_parameters": {"rope_type": "spiral"}},
        "rope_parameters.rope_type: found 'spiral'; ",
    ),
    "a window from which no cache can be made": (
        "demo-gqa",
        {"sliding_window": {"of": 1}},
        "sliding_window; no model can be built with it (TypeError: ",
    ),
    "a dtype nobody knows": ("demo", {"dtype": "float3"}, "dtype: found 'float3'; "),
    "text for a number": ("demo", {"n_layer": "4"}, "'n_layer' expected int, got str (value: '4')"),
    "one of several types": (
        "demo",
        {"n_inner": "x"},
        "'n_inner' with value 'x' doesn't match any type in (int, NoneType)",
    ),
    "no type": ("demo", {"model_type": None}, "model_type: found None, expected the name of an "),
    "two in a part, neither alone": (
        "demo-gqa",
        {
            "model_type": "llava",
            "text_config": {"model_type": "llama", "hidden_act": "swish9", "pad_token_id": 10**7},
        },
        "config.json, text_config; no model can be built with it (AssertionError: Padding_idx must",
    ),
    "two that do not fit, neither alone": (
        "demo-gqa",
        {"hidden_size": 97},
        "The hidden size (97) is not a multiple of the number of attention heads (6)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_field_that_no_model_can_be_built_with_is_named(child, tmp_path, case):
    built_in, values, told = CASES[case]
    folder = shutil.copytree(BUILT_IN[built_in].directory, tmp_path / "copy")
    edit(folder, **values)
    loaded = child.load(str(folder), prompt="Anna")
    assert loaded.error == "ModelError"
    assert loaded.message.startswith("config.json")
    assert told in loaded.message
    assert "\n" not in loaded.message
    assert "⏎" not in loaded.message


def test_weights_of_another_shape_are_named_with_both_shapes(child, copy):
    edit(copy, n_positions=128)
    told = child.load(str(copy), prompt="Anna").message
    assert "transformer.wpe.weight ([256, 96] in the files, [128, 96] by config.json)" in told
