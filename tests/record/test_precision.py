"""Where float32 is multiplied in fewer digits, that is measured, told, and counted as rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import generate, ready
from kvtrace.analysis.checks import EQUAL, check
from kvtrace.record import card, precision

CPU = torch.device("cpu")


def without_digits(tensor, kept):
    """Numbers of float32 rounded to so many digits behind the first one."""
    step = torch.exp2(tensor.abs().clamp(min=1e-30).log2().floor() - kept)
    return torch.where(tensor == 0, tensor, (tensor / step).round() * step)


@pytest.fixture
def coarse(monkeypatch):
    """A machine that multiplies float32 as TF32 does, with the switch that says so."""
    plain = {name: getattr(torch.Tensor, name) for name in ("__matmul__", "matmul")}
    linear = nn.functional.linear

    def rounded(operator):
        return lambda a, b: operator(without_digits(a, 10), without_digits(b, 10))

    for name, operator in plain.items():
        monkeypatch.setattr(torch.Tensor, name, rounded(operator))
    monkeypatch.setattr(
        nn.functional,
        "linear",
        lambda x, w, b=None: linear(without_digits(x, 10), without_digits(w, 10), b),
    )
    monkeypatch.setattr(precision, "_switches", lambda device: "tf32")
    monkeypatch.setattr(precision, "_known", {})


def test_a_machine_that_keeps_every_digit_is_as_exact_as_the_type():
    assert precision.product_eps(CPU) == torch.finfo(torch.float32).eps
    assert precision.product_dtype(CPU) is None


def test_dropped_digits_of_factors_are_measured(coarse):
    assert precision.product_eps(CPU) == pytest.approx(2**-10, rel=0.01)
    assert precision.product_dtype(CPU) == "TF32"


def test_products_in_fewer_digits_are_rounding_and_no_fault_of_the_cache(coarse, tmp_path):
    model = ready(tiny_model("llama", attn_implementation="eager"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    with kvtrace.record(model, tmp_path / "a.kvt"):
        generate(model, max_new_tokens=12)()
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.meta.model.products == "TF32"
    lane = trace.meta.lane("recomputed")
    assert lane.reason.startswith("TF32 rounding")
    beyond = [float(trace.compared(number).relative.max()) for number in trace.numbers]
    assert max(beyond) > 2e-5  # more than float32 would explain
    report = check(trace)
    assert (report.verdict, report.findings) == (EQUAL, ()), report


def test_a_card_tells_of_the_least_exact_device(monkeypatch):
    exactness = {"cpu": precision.EXACT, "meta": 2**-7}
    monkeypatch.setattr(card, "product_eps", lambda device: exactness[device.type])
    monkeypatch.setattr(card, "product_dtype", lambda device: f"that of {device.type}")
    both = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")])
    assert card.card(both).products == "that of meta"
    assert card.card(both[0]).products == "that of cpu"
    assert card.card(nn.ReLU()).products == ""
