"""A model that is run on what stands for tensors is let alone: there are no numbers to look at."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks import check

IDS = torch.tensor([[3, 1, 4, 1, 5]])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x, cache=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1)
        scores = q @ k.transpose(-1, -2)
        all_of_them = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device)
        hidden = all_of_them.triu(1 + k.shape[1] - q.shape[1])
        return self.out(F.softmax(scores.masked_fill(hidden, -1e9), -1) @ v), (k, v)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(64, 8), Attention(), nn.Linear(8, 64)

    def forward(self, ids, cache=None):
        x, cache = self.mix(self.table(ids), cache)
        return self.head(x), cache


class Fused(nn.Module):
    """What torch.fx can write down: it does not count rows."""

    def __init__(self):
        super().__init__()
        self.table, self.qkv, self.head = nn.Embedding(64, 8), nn.Linear(8, 24), nn.Linear(8, 64)

    def forward(self, ids, cache=None):
        q, k, v = self.qkv(self.table(ids)).chunk(3, -1)
        if cache is not None:
            k, v = torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1)
        return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)), (k, v)


def _logits(model, parameters, ids):
    return torch.func.functional_call(model, parameters, (ids,))[0]


def _fake(model):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return model(mode.from_tensor(IDS))[0].shape


def _vmap(model):
    return torch.vmap(lambda ids: model(ids[None])[0])(IDS.repeat(2, 1)).tolist()


def _grad(model):
    parameters = dict(model.named_parameters())
    found = torch.func.grad(lambda given: _logits(model, given, IDS).sum())(parameters)
    return {name: one.tolist() for name, one in found.items()}


def _exported(model, strict):
    return [
        str(one.target) for one in torch.export.export(model, (IDS,), strict=strict).graph.nodes
    ]


RUNS = {
    "vmap": _vmap,
    "grad": _grad,
    "export": lambda model: _exported(model, strict=False),
    "strict export": lambda model: _exported(model, strict=True),
    "make_fx": lambda model: make_fx(lambda ids: model(ids)[0])(IDS).code,
    "jit.trace": lambda model: torch.jit.trace(model, (IDS,)).code,
    "fake tensors": _fake,
}


def _decode(model):
    with torch.no_grad():
        logits, cache = model(IDS)
        for _ in range(2):
            logits, cache = model(logits[:, -1:].argmax(-1), cache)
    return logits


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("how", RUNS)
@pytest.mark.parametrize("which", ["a model", "whatever runs"])
def test_a_watched_model_is_transformed_as_if_nobody_watched(tmp_path, how, which):
    model = Model().eval()
    expected = RUNS[how](model)
    path = tmp_path / "a.kvt"
    with kvtrace.record(*((model,) if which == "a model" else ()), path):
        _decode(model)
        found = RUNS[how](model)
        _decode(model)
    assert found == expected
    assert len(kvtrace.open(path)) == 6


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
@pytest.mark.parametrize("strict", [False, True])
def test_a_watched_model_of_transformers_is_exported_as_if_nobody_watched(tmp_path, strict):
    class Plain(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, ids):
            return self.inner(ids, use_cache=False).logits

    model = tiny_model("llama")
    expected = _exported(Plain(model), strict)
    with kvtrace.record(model, tmp_path / "a.kvt"):
        model.generate(IDS, max_new_tokens=2, do_sample=False)
        assert _exported(Plain(model), strict) == expected


@torch.no_grad()
def test_a_model_without_memory_is_asked_for_its_shapes_and_does_not_end_the_recording(tmp_path):
    with kvtrace.record(tmp_path / "a.kvt") as recording:
        copy.deepcopy(model := Model().eval()).to("meta")(IDS.to("meta"))
        _decode(model)
    assert not recording.report.said
    assert len(kvtrace.open(tmp_path / "a.kvt")) == 3


def _counted(model):
    with FlopCounterMode(display=False) as counter:
        _decode(model)
    return counter.get_total_flops()


@pytest.mark.parametrize("which", ["a model", "whatever runs"])
def test_a_counter_of_operations_counts_none_of_ours(tmp_path, which):
    model = Model().eval()
    expected = _counted(model)
    with kvtrace.record(*((model,) if which == "a model" else ()), tmp_path / "a.kvt"):
        assert _counted(model) == expected
        assert _counted(model) == expected


@pytest.mark.parametrize("which", ["a model", "whatever runs"])
@pytest.mark.parametrize("before", [False, True])
def test_code_that_fx_writes_down_has_nothing_of_ours_in_it(tmp_path, which, before):
    model = Fused().eval()
    expected = fx.symbolic_trace(model, {"cache": None}).code
    with kvtrace.record(*((model,) if which == "a model" else ()), tmp_path / "a.kvt"):
        if before:
            _decode(model)
        assert fx.symbolic_trace(model, {"cache": None}).code == expected
        _decode(model)
    assert not kvtrace.open(tmp_path / "a.kvt").meta.unseen


@torch.no_grad()
def test_a_module_of_fx_is_calculated_again(tmp_path):
    model = fx.symbolic_trace(Fused().eval(), {"cache": None})
    with kvtrace.record(model, tmp_path / "a.kvt"):
        model(IDS)
        model(torch.cat([IDS, IDS], 1))
    assert [lane.name for lane in kvtrace.open(tmp_path / "a.kvt").meta.lanes] == ["recomputed"]


def test_a_recording_of_what_runs_transformed_only_says_so(tmp_path):
    model = Model().eval()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        _vmap(model)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert trace.meta.not_recorded[0].startswith("Model: torch.func (vmap, grad) runs it on")
    assert "has no steps: Model: torch.func" in check(trace).reason
