"""The functions of somebody's code are read, and those of libraries are left alone."""

import functools
import importlib
import sys

import torch
from torch import nn

from kvtrace.record.lanes.as_it_was.code import functions_of


class Wrapping(nn.Module):
    @staticmethod
    def own(x: torch.Tensor) -> torch.Tensor:
        return x

    @functools.wraps(torch.relu)
    def relu(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x)


def test_a_method_that_wraps_a_function_in_c_is_no_code_to_read():
    assert functions_of(Wrapping()) == [Wrapping.forward]


def test_a_file_whose_name_begins_as_a_librarys_is_somebodys_own(tmp_path, monkeypatch):
    (tmp_path / "torch_gpt.py").write_text(
        "from torch import nn\n\nclass Own(nn.Module):\n    def forward(self, x): return x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    own = importlib.import_module("torch_gpt").Own
    assert functions_of(own()) == [own.forward]


def test_a_global_next_to_the_model_is_found_however_far_its_printing_leads(tmp_path, monkeypatch):
    (tmp_path / "near.py").write_text("CACHE = {}\n\ndef cache(): return CACHE\n")
    (tmp_path / "far0.py").write_text("def far(): return 0\n")
    for n in range(1, 100):  # more files than are looked at
        (tmp_path / f"far{n}.py").write_text(
            f"import far{n - 1}\n\ndef far(): return far{n - 1}.far()\n"
        )
    (tmp_path / "chatty.py").write_text(
        "import far99, near\nfrom torch import nn\n\n"
        "class Chatty(nn.Module):\n"
        "    def forward(self, x): return near.cache()\n"
        "    def extra_repr(self): return far99.far()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    model = importlib.import_module("chatty").Chatty()
    assert importlib.import_module("near").cache in functions_of(model)
