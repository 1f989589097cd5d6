"""Directories: whole ones, damaged ones, and hostile ones."""

import json
import os
import struct

import pytest

from builders.folders import edit
from builders.tiny_models import tiny_model
from kvtrace_fixtures import BUILT_IN

DEMO = BUILT_IN["demo"].directory


def header_of(path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_a_whole_directory_loads_and_its_card_tells_no_path(child, copy):
    loaded = child.load(str(copy), prompt="Anna asks", new_tokens=3)
    assert loaded.error == ""
    assert loaded.card["name"] == "./copy"
    assert loaded.card["parameter_count"] == 529_632
    assert loaded.card["weight_bytes"] == 4 * 529_632
    assert loaded.card["context_length"] == 256
    assert loaded.card["weights"].startswith("sha256:")
    assert loaded.new_tokens == 3
    assert str(copy.parent) not in str(loaded.card)


def test_what_was_chosen_is_said(child, copy):
    (copy.parent / "gpt2").symlink_to(copy)
    loaded = child.load("gpt2", cwd=copy.parent, prompt="Anna", dtype="bfloat16", attention="eager")
    assert "the directory ./gpt2 was used; hf:gpt2 is the hub's" in loaded.chosen
    assert "GPT2LMHeadModel, bfloat16, eager attention, on cpu" in loaded.chosen


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dtype": "int8"}, "possible are auto, float32, float16, bfloat16"),
        ({"device": "tpu"}, "possible here are auto, cpu"),
        ({"attention": "kernels-community/flash-attn"}, "possible here are auto, eager"),
        ({"attention": "flash_attention_9"}, "kernels from the hub are not loaded"),
        ({"prompt": "Anna", "new_tokens": 257}, "exceed the model's context of 256; use -n"),
        ({"prompt": "Anna " * 300}, "tokens, the model's context holds 256"),
        ({"prompt": "a\udcffb"}, "prompt, byte 1: 0xff is not UTF-8"),
    ],
)
def test_options_that_are_not_possible_are_usage_errors(child, copy, options, told):
    loaded = child.load(str(copy), **options)
    assert (loaded.error, loaded.exit_code) == ("UsageError", 2)
    assert told in loaded.message


def test_the_context_is_checked_before_the_weights_are_read(child, copy):
    header, data = header_of(copy / "model.safetensors")
    # no tensor can be read, yet the header and the length are right
    write(copy / "model.safetensors", header, b"\xff" * len(data))
    loaded = child.load(str(copy), prompt="Anna", new_tokens=999)
    assert loaded.exit_code == 2
    assert not any("parameters" in told for told in loaded.progress)


def test_an_empty_prompt_starts_from_the_start_token_and_says_so(child, copy):
    loaded = child.load(str(copy), prompt="")
    assert loaded.prompt == (0,)
    assert "starting from the start token 0" in loaded.note


def test_missing_weights_are_refused_unless_allowed_and_then_said_on_every_screen(child, copy):
    header, data = header_of(copy / "model.safetensors")
    header["transformer.h.1.attn.c_attn.odd"] = header.pop("transformer.h.1.attn.c_attn.weight")
    write(copy / "model.safetensors", header, data)
    refused = child.load(str(copy), prompt="Anna")
    assert (refused.error, refused.exit_code) == ("ModelError", 3)
    assert "transformer.h.1.attn.c_attn.weight" in refused.message
    assert "the files hold transformer.h.1.attn.c_attn.odd" in refused.message
    assert "--allow-missing" in refused.message
    allowed = child.load(str(copy), prompt="Anna", allow_missing=True)
    assert allowed.error == ""
    assert "1 weights are missing" in allowed.card["banner"]
    assert "random numbers" in allowed.card["banner"]


def test_weights_of_another_shape_are_refused(child, copy):
    edit(copy, n_positions=128)
    loaded = child.load(str(copy), prompt="Anna")
    assert loaded.error == "ModelError"
    assert "another shape, such as transformer.wpe.weight" in loaded.message


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


DAMAGE = {
    "cut off": (cut, "cut off: 1061748 bytes of 2123496"),
    "pointer": (
        lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "a git-lfs pointer",
    ),
    "empty": (lambda raw: b"", "0 bytes that are not safetensors"),
    "garbage": (lambda raw: bytes(range(256)) * 9, "not safetensors"),
    "a page": (lambda raw: b"<html><body>log in</body></html>", "an HTML page"),
    "a zip": (lambda raw: b"PK\x03\x04" + raw[4:], "a zip"),
    "broken header": (lambda raw: raw[:8] + b"[" + raw[9:], "its header is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_get_one_line(child, copy, damage):
    path = copy / "model.safetensors"
    change, told = DAMAGE[damage]
    path.write_bytes(change(path.read_bytes()))
    loaded = child.load(str(copy), prompt="Anna")
    assert (loaded.error, loaded.exit_code) == ("ModelError", 3)
    assert loaded.message.startswith("model.safetensors: ")
    assert told in loaded.message


def test_only_a_pickle_is_refused_unless_allowed(child, copy):
    import torch
    from safetensors.torch import load_file

    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    refused = child.load(str(copy), prompt="Anna")
    assert (refused.error, refused.exit_code) == ("TrustError", 77)
    assert "pytorch_model.bin" in refused.message
    assert "--allow-pickle" in refused.message
    assert child.load(str(copy), prompt="Anna", allow_pickle=True).error == ""


def test_no_weights_says_what_was_found(child, copy):
    (copy / "model.safetensors").rename(copy / "other.gguf")
    loaded = child.load(str(copy), prompt="Anna")
    assert "no model.safetensors" in loaded.message
    assert "(found: other.gguf)" in loaded.message


OTHERS = {
    "model.gguf": "weights packed for llama.cpp",
    "notes.txt": "no config.json",
}


@pytest.mark.parametrize("holds", OTHERS)
def test_a_directory_without_a_configuration_is_called_what_it_is(child, copy, holds):
    (copy / "config.json").rename(copy / holds)
    loaded = child.load(str(copy), prompt="Anna")
    assert loaded.error == "ModelError"
    assert OTHERS[holds] in loaded.message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_a_pipe_or_leads_nowhere_is_named(child, copy, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert f"{name}: not a regular file" in child.load(str(copy), prompt="Anna").message
    (copy / name).unlink()
    (copy / name).symlink_to("nowhere")
    assert f"{name}: not a regular file" in child.load(str(copy), prompt="Anna").message


def test_an_unknown_type_names_the_version_that_does_not_know_it(child, copy):
    edit(copy, model_type="gpt9000")
    message = child.load(str(copy), prompt="Anna").message
    assert "model type 'gpt9000' is not known to transformers 5." in message


def test_a_shard_that_is_missing_or_leaves_the_directory_is_named(child, copy):
    (copy / "model.safetensors").rename(copy / "one.safetensors")
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert "the first is two.safetensors" in child.load(str(copy)).message
    index.write_text(json.dumps({"weight_map": {"a": "a" * 5000}}))
    assert "1 of 1 weight files are missing" in child.load(str(copy)).message
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    assert "is not a plain file name" in child.load(str(copy)).message
    whole = {"metadata": {"total_size": 2118528}, "weight_map": {"a": "one.safetensors"}}
    index.write_text(json.dumps(whole))
    assert child.load(str(copy), prompt="Anna").error == ""


@pytest.mark.parametrize("found", [None, [], 5])
def test_an_index_without_the_object_that_transformers_needs_is_named(child, copy, found):
    (copy / "model.safetensors").rename(copy / "one.safetensors")
    named = {} if found is None else {"metadata": found}
    index = {**named, "weight_map": {"a": "one.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    message = child.load(str(copy), prompt="Anna").message
    assert message.startswith("model.safetensors.index.json, metadata: found ")


def test_of_several_shards_the_damaged_one_is_named(child, copy):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").unlink()
    (copy / "one.safetensors").write_bytes(data)
    (copy / "two.safetensors").write_bytes(data + b"more than its header says")
    index = {"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    message = child.load(str(copy), prompt="Anna").message
    assert message.startswith("two.safetensors: SafetensorError: ")


def test_the_repositorys_own_code_runs_only_when_trusted(child, copy):
    code = (
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "class OddConfig(GPT2Config):\n    model_type = 'odd'\n"
        "class OddLM(GPT2LMHeadModel):\n    config_class = OddConfig\n"
    )
    (copy / "modeling_odd.py").write_text(code)
    edit(
        copy,
        model_type="odd",
        architectures=["OddLM"],
        auto_map={
            "AutoConfig": "modeling_odd.OddConfig",
            "AutoModelForCausalLM": "modeling_odd.OddLM",
        },
    )
    refused = child.load(str(copy), prompt="Anna")
    assert (refused.error, refused.exit_code) == ("TrustError", 77)
    assert "modeling_odd.py" in refused.message
    trusted = child.load(str(copy), prompt="Anna", trust_remote_code=True)
    assert (trusted.error, trusted.message) == ("", "")
    assert trusted.card["class_name"] == "OddLM"


def test_code_of_a_repository_is_not_needed_where_transformers_has_the_architecture(child, copy):
    (copy / "modeling_odd.py").write_text("raise SystemExit('it ran')\n")
    edit(copy, auto_map={"AutoModelForCausalLM": "modeling_odd.OddLM"})
    loaded = child.load(str(copy), prompt="Anna")
    assert loaded.error == ""
    assert loaded.card["class_name"] == "GPT2LMHeadModel"
    assert "its own code (modeling_odd.py) was not used" in loaded.chosen


def test_a_directory_has_no_revisions(child, copy):
    loaded = child.load(str(copy), prompt="Anna", revision="v1")
    assert loaded.exit_code == 2
    assert "./copy is a directory, which has no revisions" in loaded.message


def test_more_than_fits_in_memory_is_said_before_it_starts(child, copy):
    edit(copy, n_positions=2**23)
    header, data = header_of(copy / "model.safetensors")
    header["transformer.wpe.weight"]["shape"] = [2**23, 96]
    write(copy / "model.safetensors", header, data)
    loaded = child.load(str(copy), prompt="Anna", new_tokens=8_000_000)
    assert (loaded.error, loaded.exit_code) == ("MemoryLimitError", 3)
    assert "of weights and" in loaded.message
    assert "are free on cpu" in loaded.message


def test_a_model_with_only_a_recurrent_state_says_so(child, copy):
    save_random(tiny_model("mamba"), copy)
    loaded = child.load(str(copy), prompt="a")
    assert (loaded.error, loaded.exit_code) == ("ModelError", 3)
    assert "has no KV cache (found: MambaForCausalLM, a recurrent state" in loaded.message


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertLMHeadModel"])
def test_a_model_that_reads_at_once_says_so(child, copy, head):
    import transformers

    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    save_random(getattr(transformers, head)(config), copy)
    loaded = child.load(str(copy), prompt="a")
    assert (loaded.error, loaded.exit_code) == ("ModelError", 3)
    assert f"has no KV cache (found: {head}" in loaded.message


@pytest.mark.parametrize("kind", ["jamba", "recurrent_gemma", "qwen3", "deepseek_v3", "bloom"])
def test_models_that_keep_keys_pass_hybrids_too(child, copy, kind):
    save_random(tiny_model(kind), copy)
    loaded = child.load(str(copy), prompt="a")
    assert (loaded.error, loaded.message) == ("", "")
    assert loaded.card["architecture"] == kind


def test_the_class_that_its_weights_were_saved_from_reads_them(child, copy):
    # its configuration leads to a class that only decodes, too, whose weights have other names
    from transformers import Emu3Config, Emu3ForConditionalGeneration

    part = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 300, "intermediate_size": 32, "num_key_value_heads": 2, **part}
    eyes = {"codebook_size": 32, "embed_dim": 16, "base_channels": 32, "attn_resolutions": []}
    eyes |= {"latent_channels": 16, "channel_multiplier": [1, 1], "num_res_blocks": 1}
    words = {"<image>": 290, "<|visual token 000001|>": 291, "<|extra_200|>": 292}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Emu3Config(text_config=text, vq_config=eyes, vocabulary_map=words)
    save_random(Emu3ForConditionalGeneration(config), copy)
    loaded = child.load(str(copy), prompt="a")
    assert (loaded.error, loaded.message) == ("", "")
    assert loaded.card["class_name"] == "Emu3ForConditionalGeneration"


def save_random(model, folder):
    for path in folder.iterdir():
        path.unlink()
    model.save_pretrained(folder)
