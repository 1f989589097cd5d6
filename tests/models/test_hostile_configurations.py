"""Configurations made to hurt, or broken: one line at once, and nothing is fetched or built."""

import pytest

from builders.folders import edit

SIZES = {
    "no end of layers": {"n_layer": 10**12},
    "a thousand layers": {"n_layer": 1000},
    "negative layers": {"n_layer": -1},
    "negative width": {"n_embd": -96},
    "astronomic width": {"n_embd": 10**12},
    "astronomic vocabulary": {"vocab_size": 10**11},
    "text for a number": {"n_layer": "twelve"},
    "a fraction": {"n_head": 4.5},
    "a list for a number": {"n_embd": [96]},
    "nothing": {"n_embd": None},
    "no heads": {"n_head": 0},
    "heads that do not divide": {"n_head": 7},
    "more than a float": {"n_positions": 10**30},
    "unknown type": {"model_type": "gpt9000"},
    "type that is no text": {"model_type": ["gpt2"]},
    "unknown activation": {"activation_function": "system('x')"},
    "hidden in a part": {"text_config": {"num_hidden_layers": 10**9}},
}


@pytest.mark.parametrize("case", SIZES)
def test_a_hostile_configuration_gets_one_line_at_once(child, copy, case):
    edit(copy, **SIZES[case])
    loaded = child.load(str(copy), prompt="Anna")
    assert loaded.error in ("ModelError", "UsageError"), loaded
    assert "\n" not in loaded.message
    assert len(loaded.message) < 500


def test_a_configuration_larger_than_the_weights_names_both(child, copy):
    edit(copy, n_layer=10**12)
    told = child.load(str(copy), prompt="Anna").message
    assert told == (
        "config.json, n_layer: 1000000000000, but the weight files hold only 52 tensors"
    )
    edit(copy, n_layer=4, n_positions=10**9)
    told = child.load(str(copy), prompt="Anna").message
    assert "describes a model of 96000505056 parameters" in told
    assert "the weight files hold 529632" in told


@pytest.mark.parametrize("depth", [100, 100_000])
@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_a_deeply_nested_configuration_is_refused(child, copy, depth, pair):
    opened = '{"a":' if pair == "{}" else "["
    nested = opened * depth + "1" + pair[1] * depth
    path = copy / "config.json"
    path.write_text(path.read_text().replace("{", f'{{"deep": {nested},', 1))
    loaded = child.load(str(copy), prompt="Anna")
    assert loaded.error == "ModelError"
    assert "deep" in loaded.message or "not JSON" in loaded.message


@pytest.mark.parametrize("text", ["", "[1]", "{", '"gpt2"', "version https://git-lfs.x"])
def test_a_configuration_that_is_none_is_named(child, copy, text):
    (copy / "config.json").write_text(text)
    loaded = child.load(str(copy), prompt="Anna")
    assert loaded.error == "ModelError"
    assert loaded.message.startswith("config.json: ")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_configuration_in_another_encoding_is_said_to_be_that(child, copy, encoding):
    path = copy / "config.json"
    path.write_text(path.read_text(), encoding=encoding)
    said = {"utf-16": "config.json: not UTF-8", "utf-8-sig": "Unexpected UTF-8 BOM"}[encoding]
    assert said in child.load(str(copy), prompt="Anna").message


def test_an_attention_kernel_that_the_configuration_names_is_not_fetched(hub, child, copy):
    asked = len(hub.asked)
    named = "evil/kernel"
    edit(
        copy,
        attn_implementation=named,
        _attn_implementation=named,
        _attn_implementation_internal=named,
        _experts_implementation=named,
    )
    loaded = child.load(str(copy), prompt="Anna")
    assert loaded.error == ""
    assert loaded.card["attention"] == "sdpa"
    assert hub.asked[asked:] == []
