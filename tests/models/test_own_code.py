"""Code that a repository brings: what it computes is there, and its failures say what to do."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
)

from builders.folders import edit
from kvtrace.models.hub.directory import Origin, load_directory
from kvtrace.models.hub.tables import only_parameters_without_storage
from kvtrace.models.patience import Patience
from kvtrace.models.quiet import quiet
from kvtrace.models.request import LoadRequest

CODE = """
import math
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from .{parts} import Slopes


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, width=8, **rest):
        self.width = width
        super().__init__(**rest)


class OwnLM(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        angles = torch.arange(16)[:, None] * 10.0 ** -torch.arange(4)
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("kept", torch.arange(3.0) + 1)
        self.slopes = Slopes()
        self.share = torch.tensor([0.25, 0.5]).sum().item()
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))

    def _init_weights(self, module):
        pass
"""
PARTS = """
import torch
from torch import nn


class Slopes(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = 2.0 ** -torch.arange(4)
"""


@pytest.fixture
def folder(tmp_path):
    """A repository whose model computes tables in its constructor, in two files."""
    place = tmp_path / "own"
    place.mkdir()
    (place / "modeling_own.py").write_text(CODE.format(parts="parts_own"))
    (place / "parts_own.py").write_text(PARTS)
    (place / "config.json").write_text("{}")
    names = {"AutoConfig": "OwnConfig", "AutoModelForCausalLM": "OwnLM"}
    mapped = {name: f"modeling_own.{own}" for name, own in names.items()}
    edit(place, model_type="own", vocab_size=256, auto_map=mapped)
    weight = torch.arange(256 * 8.0).view(256, 8)
    save_file({"embed.weight": weight, "head.weight": weight.clone()}, place / "model.safetensors")
    return place


@pytest.fixture
def loaded(folder, tmp_path, monkeypatch):
    """Loads it here; transformers knows nothing of it afterwards."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    for table in (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        MODEL_MAPPING,
    ):
        monkeypatch.setattr(table, "_extra_content", {})
    monkeypatch.syspath_prepend(str(tmp_path / "m"))

    def load(**options):
        request = LoadRequest(
            str(folder), prompt="a", new_tokens=2, trust_remote_code=True, **options
        )
        origin = Origin("own")
        with quiet():
            return load_directory(folder, origin, request, lambda *_: None, Patience()).model

    yield load
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_constructor_of_a_repositorys_model_computes_is_there(loaded, dtype):
    model = loaded(dtype=dtype)
    angles = torch.arange(16)[:, None] * 10.0 ** -torch.arange(4)
    assert torch.equal(model.cosines, angles.cos().to(model.cosines.dtype))
    assert model.kept.tolist() == [1, 2, 3]
    assert model.slopes.plain.tolist() == [1, 0.5, 0.25, 0.125]
    assert model.share == 0.75
    assert model.embed.weight[3, 0].item() == 24


def test_a_parameter_without_storage_is_still_shared():
    with only_parameters_without_storage():
        one, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
        other.weight = one.weight
    assert other.weight is one.weight
    assert one.weight.is_meta


def test_nothing_is_left_on_the_libraries_after_loading_own_code(loaded):
    before = torch.nn.Module.register_parameter
    loaded()
    assert torch.nn.Module.register_parameter is before
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


@pytest.fixture
def refused(folder, child):
    """What is said of the directory, which can't be loaded."""

    def load():
        outcome = child.load(str(folder), prompt="a", trust_remote_code=True)
        assert outcome.exit_code == 3
        assert "\n" not in outcome.message
        return outcome.message

    return load


def test_a_file_that_the_repositorys_code_imports_and_that_is_not_there_is_named(folder, refused):
    (folder / "parts_own.py").unlink()
    assert "needs parts_own.py, which is not here: take it from the repository" in refused()


def test_a_field_that_the_code_asks_for_and_config_json_lacks_is_named(folder, refused):
    path = folder / "modeling_own.py"
    path.write_text(path.read_text().replace("config.width)", "config.broadness)"))
    assert "config.json does not say broadness" in refused()


FAILS = {
    "raise KeyError('type')": "was written for transformers 4.41.0 (config.json)",
    "raise KeyError('sdpa')": "its code has no sdpa attention: name one that it has, as --attn",
    "from transformers import LossKwargs": "was written for transformers 4.41.0 (config.json)",
    "raise ImportError('run `pip install odd`')": "building the model",
}


@pytest.mark.parametrize("line", FAILS)
def test_the_fault_of_a_repositorys_code_is_called_its_own_with_what_to_do(folder, refused, line):
    edit(folder, transformers_version="4.41.0")
    path = folder / "modeling_own.py"
    text = path.read_text().replace(
        "        self.slopes =", f"        {line}\n        self.slopes ="
    )
    path.write_text(text)
    said = refused()
    assert FAILS[line] in said
    assert ("pip install odd" in line) != ("modeling_own.py:" in said and ";" in said)


def test_transformers_own_architecture_is_pointed_at_where_the_repositorys_code_fails(
    folder, refused
):
    path = folder / "modeling_own.py"
    path.write_text(path.read_text().replace('model_type = "own"', 'model_type = "gpt2"'))
    path.write_text(path.read_text().replace("self.slopes =", "1 / 0  #"))
    edit(folder, model_type="gpt2")
    assert "without --trust-remote-code, transformers' own gpt2 is used" in refused()


def test_a_field_that_every_configuration_once_had_is_not_asked_of_config_json(folder, refused):
    path = folder / "modeling_own.py"
    path.write_text(path.read_text().replace("config.width)", "config.max_length)"))
    assert "may be written for another transformers than 5." in refused()


def test_a_repository_that_lies_elsewhere_and_is_out_of_reach_is_named(folder, refused):
    edit(folder, auto_map={"AutoConfig": "org/repo--modeling_own.OwnConfig"})
    assert "its code lies in org/repo, which could not be read" in refused()


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSeq2SeqLM"])
def test_a_decoder_that_goes_by_another_auto_class_is_loaded(folder, loaded, auto):
    names = {"AutoConfig": "modeling_own.OwnConfig", auto: "modeling_own.OwnLM"}
    edit(folder, auto_map=names)
    assert type(loaded()).__name__ == "OwnLM"


def test_a_known_architecture_decodes_whatever_else_its_repository_maps(child, copy):
    edit(copy, auto_map={"AutoModel": "modeling_odd.OddForCausalLM"})
    assert child.load(str(copy), prompt="Anna").card["class_name"] == "GPT2LMHeadModel"


def test_a_model_without_a_head_is_not_said_to_have_no_cache(folder, refused):
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    edit(folder, auto_map=names, architectures=["OwnModel"])
    assert "names no model that gives next tokens (found: OwnModel)" in refused()
