"""Modules that come while somebody waits for them."""

import importlib
import subprocess
import sys

import pytest

from kvtrace.record.capture.replaced.arriving import when_there
from kvtrace.record.capture.replaced.patch import Patches

OWN_MODEL = """
import sys, torch, kvtrace
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.qkv, self.out = nn.Embedding(9, 8), nn.Linear(8, 24), nn.Linear(8, 9)

    def forward(self, idx, past=None):
        q, k, v = self.qkv(self.emb(idx)).chunk(3, -1)
        if past is not None:
            k, v = torch.cat((past[0], k), 1), torch.cat((past[1], v), 1)
        return self.out(torch.softmax(q @ k.mT / 8**0.5, -1) @ v), (k, v)

def decode(model):
    ids, past = torch.tensor([[1]]), None
    for _ in range(4):
        logits, past = model(ids, past)
        ids = logits[:, -1:].argmax(-1)

with torch.no_grad(), kvtrace.record(sys.argv[1]) as run:
"""

LLAMA = """
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, eos_token_id=None)
    ids = torch.tensor([[1, 2, 3]])
    LlamaForCausalLM(config).eval().generate(ids, max_new_tokens=3, do_sample=False)
"""


def printed(code, *args):
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "comes_late.py").write_text("class Thing:\n    def f(self):\n        return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "comes_late"
    sys.modules.pop("comes_late", None)


def test_recording_a_model_of_ones_own_imports_neither_transformers_nor_the_compiler(tmp_path):
    code = OWN_MODEL + "    decode(Tiny())\n" + "print(run.report.traces[0].steps, *sys.modules)"
    steps, *loaded = printed(code, tmp_path / "run.kvt")
    assert steps == "4"
    assert not {"transformers", "torch._dynamo"} & set(loaded)


def test_transformers_is_seen_as_well_when_it_is_imported_within_the_recording(tmp_path):
    code = OWN_MODEL + LLAMA + "print(run.report.traces[0].steps, *sys.modules)"
    steps, *loaded = printed(code, tmp_path / "run.kvt")
    assert steps == "3"
    assert "transformers.modeling_utils" in loaded
    tell = (
        "import sys, kvtrace; t = kvtrace.open(sys.argv[1]); print(t.meta.sites[0].level, end=' ')"
    )
    tell += "; print(t.ending.reason)"
    assert printed(tell, tmp_path / "run.kvt") == ["1", "length"]


def test_code_compiled_first_within_a_recording_runs_as_it_was_written(tmp_path):
    code = OWN_MODEL + "    decode(torch.compile(Tiny()))\n" + "print(run.report.traces[0].steps)"
    code += "\nfrom torch._dynamo import eval_frame; print(eval_frame._stance.stance)"
    assert printed(code, tmp_path / "run.kvt") == ["4", "default"]


def test_who_waits_is_told_once_the_module_is_there(module):
    told = []
    when_there(module, lambda: told.append(sys.modules[module].Thing().f()))
    assert not told
    importlib.import_module(module)
    assert told == [1]


def test_a_module_that_was_waited_for_says_of_itself_what_it_says_anyway(module):
    before = list(sys.meta_path)
    when_there(module, lambda: None)
    found = importlib.import_module(module)
    assert type(found.__loader__) is type(found.__spec__.loader) is type(pytest.__loader__)
    assert sys.meta_path == before


def test_who_waits_no_more_is_not_told_and_leaves_nothing(module):
    told, before = [], list(sys.meta_path)
    stop = when_there(module, lambda: told.append(1))
    stop()
    assert sys.meta_path == before
    importlib.import_module(module)
    assert not told


def test_methods_of_a_module_that_comes_late_are_replaced_and_given_back(module):
    def install(patches):
        owner = importlib.import_module(module).Thing
        patches.replace(owner, "f", lambda original: lambda self: original(self) + 1)

    patches = Patches(install, needs=module)
    patches.hold()
    thing = importlib.import_module(module).Thing()
    assert thing.f() == 2
    patches.release()
    assert thing.f() == 1
