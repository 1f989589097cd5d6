"""Directories of adapters: few weights, which peft puts on the base model that they name."""

import json
import shutil
import sys
from copy import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from builders.hub import FakeHub, Repository
from builders.load_child import LoadChild
from kvtrace.errors import KvtraceError
from kvtrace.models.load import load
from kvtrace.models.request import LoadRequest
from kvtrace_fixtures import BUILT_IN

# peft asks transformers for an attribute that has another name by now
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

SCALE = 4 / 2  # lora_alpha / r, as LoRA scales what it adds
LORA = LoraConfig(
    task_type="CAUSAL_LM",
    r=2,
    lora_alpha=4,
    target_modules=["c_attn"],
    fan_in_fan_out=True,
    init_lora_weights=False,
)
PROMPT = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)


@pytest.fixture
def folder(tmp_path):
    """LoRA for the built-in model's copy beside it."""
    shutil.copytree(BUILT_IN["demo"].directory, tmp_path / "base")
    return _adapter(tmp_path / "mine", tmp_path / "base", LORA)


def _adapter(folder, base, config):
    """The directory that peft writes of an adapter for the model in another one."""
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, copy(config)).save_pretrained(folder)
    return folder


def _says(folder, **values):
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def _loaded(folder, **options):
    return load(LoadRequest(str(folder), prompt="Anna", new_tokens=2, **options), lambda *_: None)


def _message(folder, **options):
    with pytest.raises(KvtraceError) as raised:
        _loaded(folder, **options)
    return type(raised.value).__name__, str(raised.value)


def test_an_adapter_is_put_on_the_base_model_that_it_names(folder):
    base, adapted = _loaded(folder.parent / "base"), _loaded(folder)
    told = load_file(folder / "adapter_model.safetensors")
    first = "base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight"
    down, up = told[first.format("A")], told[first.format("B")]
    one, other = (x.model.transformer.h[0].attn.c_attn for x in (base, adapted))
    x = torch.eye(len(one.weight))
    torch.testing.assert_close(other(x), one(x) + SCALE * (x @ down.T @ up.T))
    assert adapted.card.name == "./mine"
    assert adapted.card.weights.startswith(f"{base.card.weights} + sha256:")
    assert adapted.chosen.startswith("adapter ./mine on directory ./base; GPT2LMHeadModel")
    assert adapted.prompt == base.prompt


def test_without_peft_it_is_said_what_to_do(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    kind, message = _message(folder)
    assert kind == "ModelError"
    assert "`pip install peft` has it put on its base model, or merge it" in message


def test_a_prompt_that_was_learned_is_no_adapter_of_the_model(folder):
    _adapter(folder, folder.parent / "base", PROMPT)
    assert "generate with it in a script of yours, `kvtrace run" in _message(folder)[1]


BASES = {
    None: "no base_model_name_or_path",
    "/home/me/llama": "/home/me/llama: no such directory",
    "model.py:build": "model.py: no such file",
    "os:getcwd": "neither a base model nor its directory",
    "itself": "neither a base model nor its directory",
}


@pytest.mark.parametrize("base", BASES)
def test_a_base_that_is_none_is_named_and_runs_no_code(folder, base):
    _says(folder, base_model_name_or_path=str(folder) if base == "itself" else base)
    kind, message = _message(folder)
    assert kind == "ModelError"
    assert message.startswith("adapter_config.json")
    assert BASES[base] in message


def test_weights_of_an_adapter_are_no_pickle_unless_allowed(folder):
    path = folder / "adapter_model.safetensors"
    path.rename(folder / "adapter_model.bin")
    assert _message(folder)[0] == "TrustError"
    (folder / "adapter_model.bin").unlink()
    assert "no adapter_model.safetensors beside" in _message(folder)[1]


def test_an_adapter_in_another_encoding_is_named(folder):
    (folder / "adapter_config.json").write_bytes('{"revision": "ä"}'.encode("latin-1"))
    assert "adapter_config.json: not UTF-8" in _message(folder)[1]


@pytest.fixture
def both(folder):
    """A whole model with the adapter beside it."""
    return shutil.copytree(folder, folder.parent / "base", dirs_exist_ok=True)


def test_an_adapter_beside_a_whole_model_is_put_on_it(both):
    loaded = _loaded(both)
    assert hasattr(loaded.model.transformer.h[0].attn.c_attn, "lora_A")
    assert "the adapter beside its weights is on it" in loaded.chosen


def test_a_pickled_adapter_beside_a_whole_model_is_refused(both):
    (both / "adapter_model.safetensors").rename(both / "adapter_model.bin")
    assert _message(both)[0] == "TrustError"


def test_without_peft_an_adapter_beside_a_whole_model_is_not_used(both, monkeypatch):
    for place in ("transformers.integrations.peft", "kvtrace.models.hub.adapter"):
        monkeypatch.setattr(f"{place}.is_peft_available", lambda: False)
    (both / "adapter_model.safetensors").unlink()
    assert "the adapter beside its weights was not used" in _loaded(both).chosen


def test_an_adapter_on_the_hub_is_to_be_downloaded(folder, tmp_path):
    with FakeHub({"me/lora": Repository(folder)}) as hub:
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        with LoadChild(**home) as child:
            loaded = child.load("me/lora", prompt="Anna")
    assert loaded.error == "ModelError"
    assert "hf download me/lora --local-dir my-adapter" in loaded.message
