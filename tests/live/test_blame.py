import types

import pytest

from kvtrace.errors import MemoryLimitError, ModelError, RecordError
from kvtrace.live.blame import error_of


def raised(path, text):
    """What running a file raises, and the module it stands for."""
    path.write_text(text)
    module = types.ModuleType("theirs")
    module.__file__ = str(path)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - any of them
        exec(compile(text, str(path), "exec"), module.__dict__)
    return caught.value, module


def test_the_line_of_the_users_script_is_named_not_the_librarys(tmp_path):
    text = "import json\ndef step():\n    return json.loads('{')\nstep()\n"
    error, module = raised(tmp_path / "my.py", text)
    told = error_of(error, module)
    assert isinstance(told, RecordError)
    assert str(told).startswith("my.py:3: JSONDecodeError: Expecting")


def test_without_a_script_the_deepest_line_is_named(tmp_path):
    error, _ = raised(tmp_path / "lib.py", "def f():\n    1 / 0\nf()\n")
    assert str(error_of(error, None)) == "lib.py:2: ZeroDivisionError: division by zero"


def test_our_own_errors_speak_for_themselves():
    own = ModelError("has no KV cache")
    assert error_of(own, None) is own


@pytest.mark.parametrize(
    "text",
    [
        "raise MemoryError",
        "raise RuntimeError('[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: '"
        ' "can\'t allocate memory: you tried to allocate 8 bytes")',
        "raise RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')",
    ],
)
def test_out_of_memory_is_called_that(tmp_path, text):
    error, module = raised(tmp_path / "my.py", text)
    told = error_of(error, module)
    assert isinstance(told, MemoryLimitError)
    assert "out of memory while recording" in str(told)
    assert "\n" not in str(told)


def test_a_script_that_exits_is_told_so(tmp_path):
    error, module = raised(tmp_path / "my.py", "import sys\nsys.exit(0)\n")
    told = error_of(error, module)
    assert str(told) == "my.py:2: the model's code ended the recorder (exit 0)"


def test_a_message_of_many_lines_becomes_its_first(tmp_path):
    error, module = raised(tmp_path / "my.py", "raise ValueError('one\\ntwo')\n")
    assert str(error_of(error, module)) == "my.py:1: ValueError: one"


def test_a_missing_torch_is_said_with_what_works_without_it():
    error = ModuleNotFoundError("No module named 'torch'", name="torch")
    assert "recording needs torch" in str(error_of(error, None))
    assert "traces open without it" in str(error_of(error, None))


def test_notes_of_an_error_stand_behind_it(tmp_path):
    error, _ = raised(tmp_path / "my.py", "raise ValueError('too long')\n")
    error.add_note("8 tokens went well")
    assert str(error_of(error, None)).endswith("ValueError: too long; 8 tokens went well")


def test_a_line_of_somebodys_code_is_named_before_a_librarys(tmp_path):
    text = "from transformers import LlamaConfig\ndef step():\n    LlamaConfig().nothing\nstep()\n"
    error, _ = raised(tmp_path / "remote.py", text)
    assert str(error_of(error, None)).startswith("remote.py:3: AttributeError: ")


TIED = """from transformers import GPT2Config, GPT2LMHeadModel
class Mine(GPT2LMHeadModel):
    _tied_weights_keys = ["lm_head.weight"]
Mine(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9))
"""


@pytest.mark.parametrize(
    "text",
    [
        TIED,
        "from transformers import LlamaConfig\nLlamaConfig().pretraining",
        "from transformers import DynamicCache\nDynamicCache.from_something",
        "from transformers.utils import NothingKwargs",
    ],
)
def test_a_name_that_transformers_lacks_points_to_another_version(tmp_path, text):
    import transformers

    error, module = raised(tmp_path / "my.py", text)
    hint = f"it may be written for another transformers than {transformers.__version__}"
    assert str(error_of(error, module)).endswith(hint)


@pytest.mark.parametrize(
    "text", ["object().nothing", "import nothing_at_all", "[][0]", "[].keys()"]
)
def test_other_errors_do_not(tmp_path, text):
    error, module = raised(tmp_path / "my.py", text)
    assert "another transformers" not in str(error_of(error, module))
