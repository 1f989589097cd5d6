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
