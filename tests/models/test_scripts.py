"""Models from a factory in the user's own code."""

import sys
import textwrap
import types

import pytest
import torch

from builders.driven import SMALL, forgotten
from kvtrace.errors import ModelError, UsageError
from kvtrace.models import LoadRequest, load

PLAIN = f"{SMALL}\ndef make():\n    return Small()\n"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes a user's file, and forgets what was imported from it."""
    monkeypatch.chdir(tmp_path)
    with forgotten():

        def write(code: str, name: str = "mine.py"):
            (tmp_path / name).write_text(textwrap.dedent(code))

        yield write


def loaded(spec, **options):
    options = {"prompt": "ab"} | options
    return load(LoadRequest(spec, **options), lambda text, share: None)


def test_a_factory_that_returns_a_model_reads_the_prompt_as_bytes(mine):
    mine(PLAIN)
    found = loaded("mine.py:make")
    assert found.prompt.ids == (97, 98)
    assert found.card.name == "mine.py:make"
    assert found.card.class_name == "Small"
    assert found.card.vocab_size == 300
    assert found.card.parameter_count == 300 * 8 + 8 * 300 + 300
    assert not found.model.training
    assert "the prompt is read as bytes" in found.chosen
    assert found.script.Small is type(found.model)


def test_a_class_is_a_factory_too(mine):
    mine(PLAIN)
    assert type(loaded("mine.py:Small").model).__name__ == "Small"


OWN_TO = """
    def to(self, device_or_dtype):
        super().to(device_or_dtype)
"""


def test_a_model_with_a_way_of_its_own_to_be_moved_is_moved(mine):
    mine(PLAIN.replace("\ndef make", OWN_TO + "\ndef make"))
    assert loaded("mine.py:make").card.dtype == "float32"
    found = loaded("mine.py:make", dtype="bfloat16")
    assert next(found.model.parameters()).dtype == torch.bfloat16


BY_CLASS = """
    @classmethod
    def of_size(cls, vocabulary=400):
        return cls(vocabulary)
"""


def test_what_makes_the_model_may_belong_to_a_class(mine):
    mine(PLAIN.replace("\ndef make", BY_CLASS + "\ndef make"))
    found = loaded("mine.py:Small.of_size")
    assert found.card.vocab_size == 400
    assert found.card.name == "mine.py:Small.of_size"
    with pytest.raises(UsageError, match=r"mine.py:Small.nothing: Small has no nothing"):
        loaded("mine.py:Small.nothing")


def test_an_endless_recursion_names_its_line_once(mine):
    mine("def make():\n    return make()\n")
    with pytest.raises(ModelError, match=r"mine.py:2: RecursionError") as failed:
        loaded("mine.py:make")
    assert str(failed.value).count("mine.py:2") == 1


def test_a_module_on_the_path_is_imported(mine, tmp_path):
    (tmp_path / "pack").mkdir()
    mine(PLAIN, "pack/inner.py")
    mine("", "pack/__init__.py")
    assert loaded("pack.inner:make").card.name == "pack.inner:make"


def test_a_file_that_is_called_like_a_loaded_module_does_not_replace_it(mine):
    import json

    mine(PLAIN, "json.py")
    assert loaded("json.py:make").card.class_name == "Small"
    assert sys.modules["json"] is json


def test_neighbours_of_the_file_are_importable(mine, tmp_path, monkeypatch):
    mine(PLAIN, "neighbour_parts.py")
    mine("from neighbour_parts import Small\ndef make():\n    return Small()\n")
    monkeypatch.chdir(tmp_path.parent)
    assert loaded(f"{tmp_path}/mine.py:make").card.name == "mine.py:make"


def test_neighbours_of_the_file_come_before_installed_modules_and_after_pythons(mine, monkeypatch):
    monkeypatch.setitem(sys.modules, "kvt_parts", types.ModuleType("kvt_parts"))
    mine(PLAIN, "kvt_parts.py")
    mine("broken = True\n", "colorsys.py")
    mine(
        "import colorsys\nfrom kvt_parts import Small\ndef make():\n"
        "    assert not hasattr(colorsys, 'broken')\n    return Small()\n"
    )
    assert loaded("mine.py:make").card.name == "mine.py:make"


TOKENIZERS = {
    "a character table": ("{'a': 5, 'b': 6}", (5, 6), ("a", "b")),
    "two functions": (
        "(lambda text: [ord(c) for c in text], lambda ids: ''.join(map(chr, ids)))",
        (97, 98),
        ("a", "b"),
    ),
    "tensors from encode": (
        "(lambda text: torch.tensor([[1, 2]]), lambda ids: str(ids[0]))",
        (1, 2),
        ("1", "2"),
    ),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_factory_brings_its_tokenizer(mine, kind):
    code, ids, texts = TOKENIZERS[kind]
    mine(f"{PLAIN}\ndef both():\n    return Small(), {code}\n")
    found = loaded("mine.py:both")
    assert found.prompt.ids == ids
    assert tuple(map(found.tokenizer.decode, ids)) == texts
    assert "the prompt is read by the tokenizer it returned" in found.chosen


def test_a_tokenizers_object_and_one_of_transformers_are_recognised(mine):
    mine(
        f"""{PLAIN}
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

def fast():
    made = Tokenizer(models.WordLevel({{'a': 0, 'b': 1, '?': 2}}, unk_token='?'))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made

def rust():
    return Small(), fast()

def python():
    return Small(), PreTrainedTokenizerFast(tokenizer_object=fast(), eos_token='?')
"""
    )
    for factory in ("rust", "python"):
        found = loaded(f"mine.py:{factory}", prompt="a b a")
        assert found.prompt.ids == (0, 1, 0)
        assert found.tokenizer.decode(1) == "b"
    assert found.tokenizer.eos == {2}


def test_encode_and_decode_of_the_file_are_used(mine):
    mine(
        f"{PLAIN}\ndef encode(text):\n    return [len(text)]\n"
        "def decode(ids):\n    return '*' * ids[0]\n"
    )
    found = loaded("mine.py:make")
    assert found.prompt.ids == (2,)
    assert found.tokenizer.decode(3) == "***"


def test_a_character_the_model_does_not_know_is_named(mine):
    mine(f"{PLAIN}\ndef both():\n    return Small(), {{'a': 0}}\n")
    with pytest.raises(ModelError, match="character 'b' is not among the 1"):
        loaded("mine.py:both")


def test_the_context_is_found_where_small_models_keep_it(mine):
    mine(f"{PLAIN}\ndef make():\n    model = Small()\n    model.block_size = 4\n    return model\n")
    assert loaded("mine.py:make").context_length == 4
    with pytest.raises(UsageError, match="exceed the model's context of 4; use -n 3"):
        loaded("mine.py:make", new_tokens=9)


FAULTS = {
    "raise ValueError('no checkpoint')": r"mine\.py:3: ValueError: no checkpoint",
    "raise SystemExit(4)": r"mine\.py:3: it called exit\(4\) instead of returning a model",
    "open('gone.pt')": r"mine\.py:3: FileNotFoundError: .*gone\.pt",
    "return 'text'": r"it returned str; expected a torch\.nn\.Module, or \(model, tokenizer\)",
    "return None": "it returned NoneType; expected",
    "return torch.nn.Linear(2, 2), object()": "returned a object as its tokenizer; possible are",
    "print(\n": r"mine\.py:\d: SyntaxError",
}


@pytest.mark.parametrize("line", FAULTS)
def test_what_goes_wrong_in_their_code_names_their_line(mine, line):
    mine(f"import torch\ndef make():\n    {line}\n")
    with pytest.raises(ModelError, match=FAULTS[line]) as caught:
        loaded("mine.py:make")
    assert "\n" not in str(caught.value)


def test_a_factory_that_reads_a_command_line_is_told_that_there_is_none(mine):
    mine(
        "import argparse\ndef make():\n    reader = argparse.ArgumentParser()\n"
        "    reader.add_argument('--size', required=True)\n    return reader.parse_args()\n"
    )
    with pytest.raises(ModelError, match="reads arguments of a command line, and there are none"):
        loaded("mine.py:make")


def test_an_error_deep_in_a_library_names_the_users_line(mine):
    mine(f"{PLAIN}\ndef broken():\n    torch.zeros(2) @ torch.zeros(3)\n")
    with pytest.raises(ModelError, match=r"mine\.py:18: RuntimeError"):
        loaded("mine.py:broken")


def test_a_factory_that_needs_more_is_to_be_called_by_one_of_another_name(mine):
    mine(f"{PLAIN}\ndef build(depth):\n    return Small()\n")
    with pytest.raises(ModelError, match=r"add def build_small\(\): return build\(…\), and name"):
        loaded("mine.py:build")


def test_where_a_factory_gives_several_models_the_first_is_used_and_that_is_said(mine):
    mine(f"{PLAIN}\ndef make():\n    return [Small(), Small()]\n")
    assert "of the 2 models it returned, the first is used" in loaded("mine.py:make").chosen


def test_a_missing_factory_lists_models_that_are_there_already(mine):
    mine(f"{PLAIN}\nnet = Small()\n")
    with pytest.raises(UsageError, match=r"no function or class 'nett' there; it has .*net"):
        loaded("mine.py:nett")


def test_a_missing_factory_lists_what_is_there(mine):
    mine(PLAIN)
    with pytest.raises(UsageError, match="no function or class 'build' there; it has Small, make"):
        loaded("mine.py:build")


def test_a_missing_module_is_named():
    with pytest.raises(UsageError, match=r"there is no module kvtrace_nowhere\.mine"):
        loaded("kvtrace_nowhere.mine:make")


def test_escapes_in_an_error_do_not_reach_the_terminal(mine):
    mine("def make():\n    raise ValueError('\\x1b[2Jboo')\n")
    with pytest.raises(ModelError) as caught:
        loaded("mine.py:make")
    assert "\x1b" not in str(caught.value)


def test_cuda_can_mean_the_cpu(mine):
    mine(
        f"""{PLAIN}
def gpu():
    model = Small().cuda()
    model.table.to('cuda:0')
    model.register_buffer('mask', torch.ones(2, device='cuda'))
    model.to(torch.device('cuda'))
    return model
"""
    )
    found = loaded("mine.py:gpu", cpu=True, device="cpu")
    assert {each.device for each in found.model.parameters()} == {torch.device("cpu")}
    with pytest.raises(ModelError, match=r"mine\.py:18: .*--cpu maps it to the CPU"):
        loaded("mine.py:gpu", device="cpu")


EXPORTED = """
def exported():
    free = ({1: torch.export.Dim.AUTO},)
    return torch.export.export(Small().eval(), (torch.tensor([[1, 2, 3]]),), dynamic_shapes=free)
def module(): return exported().module()
"""


@pytest.mark.parametrize("factory", ["exported", "module"])
def test_an_exported_model_is_taken_in_the_mode_in_which_it_was_exported(mine, factory):
    mine(SMALL + EXPORTED)
    model = loaded(f"mine.py:{factory}", prompt="1 2 3").model
    assert isinstance(model, torch.fx.GraphModule)


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning")
def test_of_a_model_that_torch_jit_runs_it_is_said_that_nothing_can_be_seen(mine):
    mine(SMALL + "def build(): return torch.jit.trace(Small().eval(), torch.tensor([[1, 2, 3]]))")
    with pytest.raises(ModelError, match=r"torch\.jit runs.*return the model that it was made of"):
        loaded("mine.py:build")
