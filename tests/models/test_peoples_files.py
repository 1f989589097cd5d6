"""People's files as they are: what makes the model, and what goes wrong."""

import re

import pytest

from builders.driven import SMALL
from kvtrace.errors import KvtraceError, ModelError, UsageError
from kvtrace.models import LoadRequest, load

# -- what makes the model ----------------------------------------------------------------------

OBVIOUS = {
    "a function": ("def build_model():\n    return Small()", "build_model was taken"),
    "a variable": ("model = Small()", "model was taken"),
    "the only class with a table of tokens": ("", "Small was taken"),
}


@pytest.mark.parametrize("kind", OBVIOUS)
def test_what_obviously_makes_the_model_is_taken_and_said(mine, kind):
    code, said = OBVIOUS[kind]
    found = mine(code)
    assert found.card.class_name == "Small"
    assert said in found.chosen


def test_several_that_could_are_listed_as_they_are_typed(mine):
    with pytest.raises(UsageError, match=r"name one: mine\.py:make_gpt, mine\.py:build_model$"):
        mine("def make_gpt(): ...\ndef helper(): ...\ndef build_model(): ...\n")


def test_nothing_that_could_says_what_to_add(mine):
    with pytest.raises(UsageError, match=r"found no function that makes a model \(it has helper\)"):
        mine("def helper():\n    return 1\n", bare=True)


def test_a_variable_can_be_named(mine):
    assert mine("net = Small(290)", "net").card.vocab_size == 290


CONFIGS = {
    "a dataclass": "import dataclasses\n@dataclasses.dataclass\nclass Config:\n    v: int = 70\n",
    "a variable": "from types import SimpleNamespace\ncfg = SimpleNamespace(v=70)\n",
    "a dictionary": "class D(dict):\n    v = 70\nGPT_CONFIG = D(v=70)\n",
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_of_the_file_fills_the_parameter_that_wants_one(mine, kind):
    code = CONFIGS[kind] + "class Own(Small):\n    def __init__(self, config):\n"
    found = mine(code + "        super().__init__(config.v)\nstoi = {'a': 0, 'b': 1}\n", "Own")
    assert found.card.vocab_size == 70
    assert "config of Own is" in found.chosen


def test_a_global_of_the_same_name_fills_a_parameter(mine):
    found = mine("vocab_size = 280\ndef make(vocab_size):\n    return Small(vocab_size)\n", "make")
    assert found.card.vocab_size == 280


def test_what_was_filled_in_is_said_where_it_makes_no_model(mine):
    code = """
        class ModelConfig:
            def __init__(self, vocab=None):
                self.vocab = vocab

        class Own(Small):
            def __init__(self, config):
                super().__init__(config.vocab)
        """
    said = r"TypeError.*; config of Own is ModelConfig\(\); if .*, add def build\(\): return Own"
    with pytest.raises(ModelError, match=said):
        mine(code, "Own")


def test_a_parameter_that_nothing_fills_is_named_with_the_remedy(mine):
    with pytest.raises(ModelError, match=r"make needs depth, .* add def build\(\): return make"):
        mine("def make(depth):\n    return Small()\n", "make")


RETURNS = {
    "a model and a config": "return Small(), {'layers': 2}",
    "a config and a model": "from types import SimpleNamespace as Config; return Config(), Small()",
    "model, tokenizer, config": "return Small(), {'a': 5, 'b': 6}, Config",
    "a dictionary": "return {'model': Small(), 'step': 3}",
    "an adapter": "return Adapter()",
}
ADAPTER = """
class Config: ...
class Adapter:
    def __init__(self): self.model = Small()
    def encode(self, text): return [5, 6]
    def decode(self, ids): return 'x'
    def step(self, ids, cache, pos): return self.model(ids)
"""


@pytest.mark.parametrize("kind", RETURNS)
def test_a_model_is_found_in_what_comes_with_it(mine, kind):
    found = mine(f"{ADAPTER}\ndef make():\n    {RETURNS[kind]}\n", "make")
    assert found.card.class_name == "Small"
    brings = kind in ("model, tokenizer, config", "an adapter")
    assert found.prompt.ids == ((5, 6) if brings else (97, 98))
    assert ("step" in found.functions) == (kind == "an adapter")


def test_relative_imports_of_a_file_in_a_package_work(mine, tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "parts.py").write_text(SMALL)
    (tmp_path / "pack" / "whole.py").write_text("from .parts import Small\nmake = Small\n")
    found = load(LoadRequest("pack/whole.py:make", prompt="a"), lambda text, share: None)
    assert found.card.class_name == "Small"


@pytest.mark.parametrize("folder", ["json", "beside", "a.b"])
@pytest.mark.parametrize("begin", [None, "NAME = 'theirs'\n"])
def test_relative_imports_are_of_the_files_folder_whatever_else_has_its_name(
    mine, tmp_path, folder, begin
):
    (tmp_path / "beside.py").write_text("")
    (tmp_path / folder).mkdir()
    if begin is not None:
        (tmp_path / folder / "__init__.py").write_text(begin)
    (tmp_path / folder / "parts.py").write_text(SMALL)
    own = "" if begin is None else "from . import NAME\n"
    (tmp_path / folder / "whole.py").write_text(f"{own}from .parts import Small\nmake = Small\n")
    found = load(LoadRequest(f"{folder}/whole.py:make", prompt="a"), lambda text, share: None)
    assert found.card.class_name == "Small"


# -- what goes wrong ---------------------------------------------------------------------------

MISTAKES = {
    "a checkpoint": (
        "def make():\n    return torch.load('weights/final.pt')\n",
        r"mine\.py:\d+: FileNotFoundError.*it needs a checkpoint that is not there",
    ),
    "data, at import": (
        "words = open('data/train.bin', 'rb').read()\n",
        r"mine\.py:\d+: FileNotFoundError.*it needs a file that is not there: .*--definitions",
    ),
    "a package": ("import nowhere_to_be_found\n", r"install nowhere_to_be_found next to kvtrace"),
    "a state dict": (
        "def make():\n    return Small().state_dict()\n",
        "it returned a state dict; .*load it into a model first",
    ),
    "the class itself": ("def make():\n    return Small\n", r"return Small\(…\), an object of it"),
    "no return": ("def make():\n    Small()\n", "is a return missing"),
    "meta": (
        "def make():\n    with torch.device('meta'):\n        return Small()\n",
        "on the meta device, so they have no values",
    ),
    "text for ids": (
        "class Tok:\n    def encode(self, s): return s.upper()\n    decode = str\n\n"
        "def make():\n    return Small(), Tok()\n",
        r"your tokenizer, encoding: it made 'AB' of 'ab'; expected a list of token ids",
    ),
    "pieces for ids": (
        "class Tok:\n    def encode(self, s): return list(s)\n    decode = str\n\n"
        "def make():\n    return Small(), Tok()\n",
        "your tokenizer, encoding: it made 'a' of 'ab', which is no token id; return ids",
    ),
    "a generator": (
        "def make():\n    yield Small()\n",
        "it returned a generator; .*: return it, where the factory yields",
    ),
    "a configuration": (
        "class Config: ...\n\ndef make():\n    return Config()\n",
        "it returned Config; .*: return the model that is built from it",
    ),
    "lazy layers": (
        "def make():\n    return torch.nn.Sequential(torch.nn.LazyLinear(3))\n",
        "it has lazy layers, .*; call the model once, with any tokens, before it is returned",
    ),
    "another size": (
        "def make():\n    other = Small()\n"
        "    other.load_state_dict({k: v[:1] for k, v in other.state_dict().items()})\n",
        r"mine\.py:\d+: RuntimeError: .*the checkpoint is of a model of other sizes",
    ),
    "a tokenizer that raises": (
        "class Tok:\n    def encode(self, s):\n        return [{}[c] for c in s]\n\n"
        "    decode = str\n\ndef make():\n    return Small(), Tok()\n",
        r"your tokenizer, encoding, mine\.py:\d+: KeyError: 'a'",
    ),
    "a gpu": ("def make():\n    return Small().cuda()\n", "--cpu maps it to the CPU"),
    "an assertion on it": (
        "def make():\n    assert torch.cuda.is_available()\n    return Small()\n",
        "--cpu maps it to the CPU",
    ),
    "a question": (
        "def make():\n    raise EOFError('EOF when reading a line')\n",
        "it asks for input, and there is no keyboard here",
    ),
    "a main block": ("if __name__ == '__main__':\n    made = 1\n", "kvtrace run mine.py"),
    "a package of its own name": (
        "import mine.parts\n",
        "the file has the name of the package mine and hides it: rename the file",
    ),
    "its import": ("1 / 0\ndef make(): ...\n", r"mine\.py:\d+: ZeroDivision.*--definitions runs"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_gets_one_line_that_helps(mine, kind):
    code, told = MISTAKES[kind]
    with pytest.raises(KvtraceError) as caught:
        mine(code, "make")
    assert re.search(told, str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_mistake_in_somebody_elses_file_names_both_places(mine, tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "lent_parts.py").write_text("def part():\n    return Missing()\n")
    monkeypatch.syspath_prepend(str(folder))
    code = "import lent_parts\n\ndef make():\n    return lent_parts.part()\n"
    with pytest.raises(ModelError, match=r"mine\.py:4: NameError.* \(in lent_parts\.py:2\)"):
        mine(code, "make", bare=True)


def test_an_optimizer_beside_the_model_is_no_tokenizer(mine):
    code = (
        "def make():\n    model = Small()\n"
        "    return model, torch.optim.AdamW(model.parameters())\n"
    )
    assert mine(code, "make").card.class_name == "Small"


def test_dropout_in_training_mode_is_switched_off_and_said(mine):
    code = "def make():\n    m = Small()\n    m.drop = nn.Dropout(0.1)\n    return m.train()\n"
    assert "it was in training mode, with dropout" in mine(code, "make").chosen
    assert "training mode" not in mine("", "Small").chosen


# -- without a GPU -----------------------------------------------------------------------------


def test_with_cpu_everything_that_names_cuda_stays_here(mine):
    found = mine(
        """
        device = 'cuda'
        torch.save(Small().state_dict(), 'w.pt')
        def make():
            torch.set_default_device(device)
            model = Small().to(0)
            torch.cuda.synchronize()
            model.load_state_dict(torch.load('w.pt', map_location=device))
            with torch.autocast('cpu'):
                model(torch.zeros(1, 2, dtype=torch.long, device=device).pin_memory())
            torch.Generator(device=device)
            torch.set_default_device(None)
            return model.to(device, non_blocking=True)
        """,
        "make",
        cpu=True,
        device="cpu",
    )
    assert found.card.device == "cpu"
    assert "with --cpu, cuda means the CPU" in found.chosen


def test_with_cpu_annotations_and_checks_name_a_generator_as_ever(mine):
    found = mine(
        """
        def seeded(generator: torch.Generator | None = None) -> torch.Generator:
            made = generator or torch.Generator("cuda").manual_seed(3)
            assert isinstance(made, torch.Generator) and made.device.type == "cpu"
            assert issubclass(type(made), torch.Generator)
            return made

        def make():
            here = torch.cuda.current_device()
            torch.randn(2, generator=seeded(), device=here).to(device=here)
            return Small().to(device=here)
        """,
        "make",
        cpu=True,
        device="cpu",
    )
    assert found.card.device == "cpu"


def test_with_cpu_code_that_insists_on_a_gpu_is_told_that_there_is_one(mine):
    code = "def make():\n    assert torch.cuda.is_available(), 'needs a GPU'\n    return Small()\n"
    found = mine(code, "make", cpu=True, device="cpu")
    assert "its code insists on a GPU" in found.chosen


def test_afterwards_torch_is_as_it_was(mine):
    import torch

    before = (torch.load, torch.cuda.is_available, torch.Generator, torch.set_default_device)
    mine("", "Small", cpu=True, device="cpu")
    assert before == (
        torch.load,
        torch.cuda.is_available,
        torch.Generator,
        torch.set_default_device,
    )


# -- only its definitions ----------------------------------------------------------------------

TRAINS = """
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import nowhere_at_all

text = "hello world"
chars = sorted(list(set(text)))
vocab_size = len(chars)
stoi = {c: i for i, c in enumerate(chars)}
encode = lambda s: [stoi[c] for c in s]
decode = lambda ids: "".join(chars[i] for i in ids)
device = 'cuda' if torch.cuda.is_available() else 'cpu'

@dataclass
class TrainConfig:
    steps: int = 10

cfg = TrainConfig()
model = Small(vocab_size)
optimizer = torch.optim.AdamW(model.parameters())
for step in range(cfg.steps):
    raise RuntimeError("it trains")
missing = open('/nowhere/at/all.txt').read()
print("done")
if __name__ == "__main__":
    raise RuntimeError("it is no program")

def build():
    return Small(vocab_size)

def uses_what_is_left_out():
    return Small(len(list(model.parameters())))
"""


def test_definitions_leave_out_what_a_file_does(mine):
    with pytest.raises(ModelError, match="it trains; the file does this when imported"):
        mine(TRAINS, "build", prompt="hello")
    found = mine(TRAINS, "build", prompt="hello", definitions=True)
    assert found.card.vocab_size == 8  # of hello world
    assert found.prompt.ids == (3, 2, 4, 4, 5)
    assert "only its definitions were run" in found.chosen


def test_a_name_that_was_left_out_is_said_with_its_line(mine):
    line = (SMALL + TRAINS).splitlines().index("model = Small(vocab_size)") + 1
    with pytest.raises(UsageError, match=f"model is made in line {line}, which --definitions"):
        mine(TRAINS, "model", definitions=True)
    with pytest.raises(ModelError, match=f"line {line}, which makes model, is left out"):
        mine(TRAINS, "uses_what_is_left_out", definitions=True, prompt="hello")


def test_a_file_that_reads_its_arguments_finds_none(mine):
    code = "import sys\nassert len(sys.argv) == 1 and sys.argv[0].endswith('mine.py')\n"
    assert mine(code, "Small").card.class_name == "Small"
