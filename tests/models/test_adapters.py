"""Directories of adapters: few weights, which peft puts on the base model that they name."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.hub import FakeHub, Repository
from builders.load_child import LoadChild
from kvtrace.errors import KvtraceError
from kvtrace.models.hub import adapter
from kvtrace.models.load import load
from kvtrace.models.request import LoadRequest
from kvtrace_fixtures import BUILT_IN


class Peft:
    """As much of peft as is asked for: an adapter that adds to a bias, or a prompt."""

    def __init__(self, prompt):
        self.prompt, self.PeftModel = prompt, self

    def from_pretrained(self, model, folder):
        more = load_file(folder + "/adapter_model.safetensors")["bias"]
        model.transformer.h[0].attn.c_attn.bias.data += more
        config = SimpleNamespace(is_prompt_learning=self.prompt)
        return SimpleNamespace(get_base_model=lambda: model, active_peft_config=config)


@pytest.fixture
def folder(tmp_path):
    """An adapter of the built-in model's copy beside it."""
    shutil.copytree(BUILT_IN["demo"].directory, tmp_path / "base")
    made = tmp_path / "mine"
    made.mkdir()
    save_file({"bias": torch.ones(288)}, made / "adapter_model.safetensors")
    return _says(made, base_model_name_or_path=str(tmp_path / "base"))


@pytest.fixture
def peft(monkeypatch):
    """Has it installed, where only the load gate sees it."""

    def install(prompt=False):
        monkeypatch.setattr(adapter, "import_module", lambda name: Peft(prompt))

    return install


def _says(folder, **values):
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def _loaded(folder, **options):
    return load(LoadRequest(str(folder), prompt="Anna", new_tokens=2, **options), lambda *_: None)


def _message(folder, **options):
    with pytest.raises(KvtraceError) as raised:
        _loaded(folder, **options)
    return type(raised.value).__name__, str(raised.value)


def test_an_adapter_is_put_on_the_base_model_that_it_names(folder, peft):
    peft()
    base, adapted = _loaded(folder.parent / "base"), _loaded(folder)
    one, other = (x.model.transformer.h[0].attn.c_attn.bias for x in (base, adapted))
    assert torch.equal(other, one + 1)
    assert adapted.card.name == "./mine"
    assert adapted.card.weights.startswith(f"{base.card.weights} + sha256:")
    assert adapted.chosen.startswith("adapter ./mine on directory ./base; GPT2LMHeadModel")
    assert adapted.prompt == base.prompt


def test_without_peft_it_is_said_what_to_do(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    kind, message = _message(folder)
    assert kind == "ModelError"
    assert "`pip install peft` has it put on its base model, or merge it" in message


def test_a_prompt_that_was_learned_is_no_adapter_of_the_model(folder, peft):
    peft(prompt=True)
    assert "generate with it in a script of yours, `kvtrace run" in _message(folder)[1]


BASES = {
    None: "no base_model_name_or_path",
    "/home/me/llama": "/home/me/llama: no such directory",
    "model.py:build": "model.py: no such file",
    "os:getcwd": "neither a base model nor its directory",
    "itself": "neither a base model nor its directory",
}


@pytest.mark.parametrize("base", BASES)
def test_a_base_that_is_none_is_named_and_runs_no_code(folder, peft, base):
    peft()
    _says(folder, base_model_name_or_path=str(folder) if base == "itself" else base)
    kind, message = _message(folder)
    assert kind == "ModelError"
    assert message.startswith("adapter_config.json")
    assert BASES[base] in message


def test_weights_of_an_adapter_are_no_pickle_unless_allowed(folder, peft):
    peft()
    path = folder / "adapter_model.safetensors"
    path.rename(folder / "adapter_model.bin")
    assert _message(folder)[0] == "TrustError"
    (folder / "adapter_model.bin").unlink()
    assert "no adapter_model.safetensors beside" in _message(folder)[1]


def test_an_adapter_in_another_encoding_is_named(folder, peft):
    peft()
    (folder / "adapter_config.json").write_bytes('{"revision": "ä"}'.encode("latin-1"))
    assert "adapter_config.json: not UTF-8" in _message(folder)[1]


def test_an_adapter_beside_a_whole_model_is_told(folder):
    shutil.copy(folder / "adapter_config.json", folder.parent / "base")
    assert "the adapter beside its weights was not used" in _loaded(folder.parent / "base").chosen


def test_an_adapter_on_the_hub_is_to_be_downloaded(folder, tmp_path):
    with FakeHub({"me/lora": Repository(folder)}) as hub:
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        with LoadChild(**home) as child:
            loaded = child.load("me/lora", prompt="Anna")
    assert loaded.error == "ModelError"
    assert "hf download me/lora --local-dir my-adapter" in loaded.message
