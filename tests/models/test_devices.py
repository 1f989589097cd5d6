"""Which device a model goes to."""

import pytest
import torch

from builders.driven import run_file
from kvtrace.errors import UsageError
from kvtrace.models import LoadRequest, load
from kvtrace.models.options import device_named, devices

CODE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(300, 8)

def make():
    return Small()
"""


@pytest.fixture
def two_accelerators(monkeypatch):
    """A machine with two of a kind that is neither CUDA nor MPS."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


def test_a_machine_without_an_accelerator_has_its_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert devices() == ["cpu"]
    assert device_named("auto") == torch.device("cpu")


def test_every_accelerator_of_whatever_kind_can_be_named(two_accelerators):
    assert devices() == ["cpu", "meta:0", "meta:1"]
    assert device_named("auto") == device_named("meta") == torch.device("meta", 0)
    assert device_named("meta:1") == torch.device("meta", 1)
    with pytest.raises(UsageError, match="possible here are auto, cpu, meta:0, meta:1"):
        device_named("meta:2")


def test_a_users_model_stays_where_it_is_unless_a_device_is_named(two_accelerators, tmp_path):
    """Its code may make tensors on the CPU as it goes."""
    path = tmp_path / "small.py"
    path.write_text(CODE)
    assert _placed(f"{path}:make") == "cpu"
    assert _placed(f"{path}:make", device="meta:1") == "meta"


def _placed(spec, **options):
    model = load(LoadRequest(spec, "ab", **options), lambda text, part: None).model
    return next(model.parameters()).device.type


def test_with_cpu_a_forward_that_names_cuda_runs_here(tmp_path):
    forward = """
    def forward(self, ids):
        places = torch.zeros(1, device='cuda')
        return places + self.table(ids) @ self.table.weight.T
"""
    (tmp_path / "mine.py").write_text(CODE.replace("\ndef make", f"{forward}\ndef make"))
    run = run_file(f"{tmp_path / 'mine.py'}:Small", cpu=True, device="cpu", new_tokens=2)
    assert len(run.tokens) == 2
