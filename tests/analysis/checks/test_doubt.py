"""Differences that are hardly too large for rounding, and runs that reuse nothing."""

import torch

import kvtrace
from builders.tiny_models import tiny_model
from builders.ways import IDS, ready
from kvtrace.analysis.checks import UNCHECKED, check
from kvtrace.analysis.checks.around.doubt import doubtful
from kvtrace.analysis.checks.noise import noise
from kvtrace.analysis.checks.report import Finding
from kvtrace.files import open_trace
from kvtrace_fixtures.zoo.drive import Course, drive
from kvtrace_fixtures.zoo.plant import twin
from kvtrace_fixtures.zoo.table import catalogue
from kvtrace_fixtures.zoo.twins.decoder import Sizes


class Shelf(torch.nn.Module):
    """Attention over a list of keys and values that the caller keeps, or does not."""

    def __init__(self, layers=2):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(50, 32)
        self.parts = torch.nn.ModuleList(torch.nn.Linear(32, 96) for _ in range(layers))
        self.head = torch.nn.Linear(32, 50)

    def forward(self, ids, past, borrow=False):
        x = self.embed(ids)
        for number, part in enumerate(self.parts):
            q, k, v = (one.unflatten(-1, (2, 16)).transpose(1, 2) for one in part(x).chunk(3, -1))
            if number in past:
                k, v = (torch.cat(pair, 2) for pair in zip(past[number], (k, v), strict=True))
            past[number] = k, v
            if borrow and number:
                k, v = past[0]
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(
                k.shape[2] - q.shape[2]
            )
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
            x = x + out.transpose(1, 2).flatten(2)
        return self.head(x)


def test_a_layer_that_reads_anothers_rows_in_decode_steps_is_told(tmp_path):
    model, past = Shelf(), {}
    ids = torch.randperm(50, generator=torch.Generator().manual_seed(1))[None, :10]
    with kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True), torch.no_grad():
        for start, end in ((0, 7), (7, 8), (8, 9)):
            model(ids[:, start:end], past, borrow=end > 7)
    trace = open_trace(tmp_path / "a.kvt")
    first = check(trace).findings[0]
    assert (first.name, first.step, trace.site(first.layer).layer) == ("WRONG-LAYER", 1, 1)


def test_steps_that_compute_everything_again_reuse_nothing(tmp_path):
    model = Shelf()
    ids = torch.randperm(50, generator=torch.Generator().manual_seed(1))[None, :10]
    with kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True), torch.no_grad():
        for end in (7, 8, 9):
            model(ids[:, :end], {})
    report = check(open_trace(tmp_path / "a.kvt"))
    assert report.verdict == UNCHECKED
    assert "no KV cache" in report.reason


def test_the_referee_settles_a_doubt(tmp_path):
    model = twin(next(iter(catalogue().values())), Sizes()).to(torch.bfloat16)
    with kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True, referee=True):
        drive(model, Course(), "plain")
    trace = open_trace(tmp_path / "a.kvt")
    vague = {"name": "UNKNOWN", "step": 2, "layer": 1, "tensor": "q", "evidence": "off"}
    assert doubtful(trace, Finding(**vague, apart=0.03, limit=0.02), "recomputed")
    assert not doubtful(trace, Finding(**vague, apart=0.3, limit=0.02), "recomputed")
    named = Finding(**vague | {"name": "POSITION-ROPE"}, apart=0.03, limit=0.02)
    assert not doubtful(trace, named, "recomputed")


def test_rounding_behind_recurrent_layers_is_larger(tmp_path):
    limits = []
    for kind in ("qwen3_next", "llama"):
        model = ready(tiny_model(kind))
        with kvtrace.record(model, tmp_path / f"{kind}.kvt", force=True), torch.no_grad():
            model.generate(IDS, max_new_tokens=2, do_sample=False)
        limits.append(noise(kvtrace.open(tmp_path / f"{kind}.kvt"), "recomputed"))
    behind, plain = limits
    assert behind.threshold[0, 0] == 4 * plain.threshold[0, 0]
    assert "recurrent layers" in behind.reason
    assert "recurrent layers" not in plain.reason
