"""How models are watched: by class, wherever they are called from, and without a trace after."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from builders.attentions import (
    HEADS,
    SCALE,
    Attention,
    Model,
    head_loop,
    hidden,
    matmul,
    token_ids,
    turned,
    with_sdpa,
)
from kvtrace.record.flow import FlowWatch
from kvtrace.record.flow.marks.mark import Marks


def test_forward_called_directly_is_seen():
    model = Model(matmul)
    with FlowWatch(model, sink=(calls := []).append):
        model.forward(token_ids(1, 5))
        model.layers[1].forward(torch.randn(1, 3, 32))
    assert [call.module for call in calls] == ["layers.0", "layers.1", "layers.1"]


def test_everything_is_as_before_after_an_exception():
    model = Model(matmul)
    before = (Model.forward, Attention.forward, torch.overrides.has_torch_function)
    with FlowWatch(model, sink=lambda _: None):
        assert Attention.forward is not before[1]
        with pytest.raises(IndexError):
            model(torch.tensor([[99999]]))
    with pytest.raises(KeyError), FlowWatch(model, sink=lambda _: None):
        raise KeyError
    assert (Model.forward, Attention.forward, torch.overrides.has_torch_function) == before
    assert torch._C._len_torch_function_stack() == 0
    assert "forward" not in model.__dict__
    calls = []
    with FlowWatch(model, sink=calls.append):
        model(token_ids(1, 3))
    assert len(calls) == 2


def test_a_forward_of_a_single_instance_is_seen_and_given_back():
    model = Model(matmul)
    original = model.layers[0].forward
    wrapped = lambda x, past=None: original(x, past)  # noqa: E731
    model.layers[0].forward = wrapped
    with FlowWatch(model, sink=(calls := []).append):
        model(token_ids(1, 4))
    assert [call.module for call in calls] == ["layers.0", "layers.1"]
    assert model.layers[0].forward is wrapped


def test_an_error_of_the_sink_never_reaches_the_model():
    def refuse(_):
        raise RuntimeError("disk full")

    model = Model(matmul)
    ids = token_ids(1, 4)
    with FlowWatch(model, sink=refuse) as watch:
        seen = model(ids)[0]
    assert torch.equal(seen, model(ids)[0])
    assert any("disk full" in sentence for sentence in watch.unseen)


@pytest.mark.parametrize("nth", range(0, 40, 3))
@pytest.mark.parametrize("method", ["get", "set"])
def test_a_fault_of_ours_at_any_function_leaves_the_model_as_it_was(monkeypatch, method, nth):
    model = Model(matmul)
    ids = token_ids(1, 4)
    expected = model(ids)[0]
    original, count = getattr(Marks, method), iter(range(10_000))

    def faulty(*args, **kwargs):
        if next(count) == nth:
            raise KeyError("nobody foresaw this")
        return original(*args, **kwargs)

    monkeypatch.setattr(Marks, method, faulty)
    with FlowWatch(model, sink=lambda _: None) as watch:
        seen = model(ids)[0]
    assert torch.equal(seen, expected)
    if next(count) > nth:
        assert any("nobody foresaw this" in sentence for sentence in watch.unseen)


def test_an_error_of_the_model_itself_reaches_the_caller():
    class Wrong(nn.Module):
        def forward(self, x):
            return x @ x

    with pytest.raises(RuntimeError, match="mat1 and mat2"), FlowWatch(Wrong(), sink=print):
        Wrong()(torch.ones(2, 3))


def test_only_chosen_modules_are_watched():
    model = Model(matmul)
    with FlowWatch(
        model, sink=(calls := []).append, only=lambda path, _: path == "layers.1"
    ) as watch:
        (logits, _) = model(token_ids(1, 4))
        assert torch._C._len_torch_function_stack() == 0
    assert [call.module for call in calls] == ["layers.1"]
    assert watch.unseen == ()
    assert torch.equal(logits, model(token_ids(1, 4))[0])


def test_calls_of_a_module_are_counted_within_a_forward():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 32)
            self.shared = Attention(matmul)

        def forward(self, ids):
            x, _ = self.shared(self.embed(ids))
            return self.shared(x)[0]

    model = Twice()
    with FlowWatch(model, sink=(calls := []).append):
        model(token_ids(1, 5))
        model(token_ids(1, 5))
    assert [(call.module, call.call) for call in calls] == [("shared", 0), ("shared", 1)] * 2


def test_gradients_are_the_same_and_no_call_holds_a_graph():
    model = Model(matmul)
    ids = token_ids(2, 5)
    model(ids)[0].sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with FlowWatch(model, sink=(calls := []).append):
        model(ids)[0].sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, model.parameters(), strict=True))
    assert not any(call.keys.requires_grad or call.output.requires_grad for call in calls)


def test_inference_mode_works():
    model = Model(matmul)
    with torch.inference_mode(), FlowWatch(model, sink=(calls := []).append) as watch:
        model(token_ids(2, 5))
    assert (len(calls), watch.unseen) == (2, ())


@pytest.mark.parametrize("spelling", [matmul, with_sdpa, head_loop])
def test_autocast_gives_the_same_bits_and_the_calls_prove_themselves(spelling):
    model = Model(spelling)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(token_ids(1, 6))[0]
        with FlowWatch(model, sink=(calls := []).append) as watch:
            seen = model(token_ids(1, 6))[0]
    assert torch.equal(plain, seen)
    assert (len(calls), watch.unseen) == (2, ())
    assert calls[0].output.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_prove_themselves(dtype):
    model = Model(matmul).to(dtype)
    with torch.no_grad(), FlowWatch(model, sink=(calls := []).append) as watch:
        model(token_ids(2, 6))
    assert ([call.keys.dtype for call in calls], watch.unseen) == ([dtype] * 2, ())


def test_dropout_in_training_is_no_obstacle():
    def dropped(q, k, v):
        m = hidden(q, k)
        q, k, v = turned(q, k, v)
        weights = (q @ k.mT * SCALE).masked_fill(m, -torch.inf).softmax(-1)
        return (F.dropout(weights, 0.5) @ v).transpose(1, 2)

    model = Model(dropped)
    torch.manual_seed(5)
    plain = model(token_ids(1, 6))[0]
    torch.manual_seed(5)
    with FlowWatch(model, sink=(calls := []).append) as watch:
        seen = model(token_ids(1, 6))[0]
    assert torch.equal(plain, seen)
    assert (len(calls), watch.unseen) == (2, ())


def test_compiled_code_is_looked_at_eagerly_and_that_is_said():
    model = Model(matmul)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), FlowWatch(compiled, sink=(calls := []).append) as watch:
        compiled(token_ids(1, 5))
    assert [call.module for call in calls] == ["layers.0", "layers.1"]
    assert any("compiled code was run eagerly" in note for note in watch.notes)


def scripted(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.softmax((scores * 0.25).masked_fill(mask, -1e9), -1)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_softmax_is_bridged_by_its_numbers():
    helper = torch.jit.script(scripted)

    def bridged(q, k, v):
        m = hidden(q, k)
        q, k, v = turned(q, k, v)
        return (helper(q @ k.mT, m) @ v).transpose(1, 2)

    model = Model(bridged)
    with torch.no_grad(), FlowWatch(model, sink=(calls := []).append) as watch:
        model(token_ids(1, 6))
    assert [call.scale for call in calls] == [pytest.approx(0.25, rel=1e-3)] * 2
    assert watch.unseen == ()
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    assert torch.equal(calls[0].visible.expand(1, HEADS, 6, 6)[0, 0], causal)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_module_is_said_to_be_out_of_sight():
    class Whole(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return torch.softmax(q @ k.transpose(-2, -1), -1) @ v

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.jit.script(Whole())

        def forward(self, x):
            return self.inner(x, x, x)

    model = Holder()
    with FlowWatch(model, sink=(calls := []).append) as watch:
        model(torch.randn(1, 4, 8))
    assert calls == []
    assert "inner: scripted, can't be seen" in watch.unseen


def test_functions_without_a_module_are_named_by_their_own_name():
    def my_attention(x, w):
        q, k, v = (x @ w).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        return ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    w = torch.randn(32, 96)
    with FlowWatch(sink=(calls := []).append) as watch:
        watch.begin_step(batch=2, tokens=5)
        x = my_attention(torch.randn(2, 5, 32), w)
        my_attention(x, w)
    assert [call.call for call in calls] == [0, 1]
    assert [call.layer for call in calls] == [0, 1]
    assert calls[0].module.endswith("my_attention")
    assert calls[0].keys.shape == (2, 4, 5, 8)


def test_functions_over_a_models_parameters_take_the_owners_path():
    model = Model(matmul)

    def run(layer, x):
        q, k, v = layer.qkv(x).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return x + F.linear(y, layer.out.weight, layer.out.bias)

    with torch.no_grad(), FlowWatch(model, sink=(calls := []).append):
        x = torch.randn(1, 5, 32)
        for layer in model.layers:
            x = run(layer, x)
    assert [call.module for call in calls] == ["layers.0", "layers.1"]


def test_single_head_layers_in_one_forward_stay_layers():
    class Inline(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.ModuleList(nn.Linear(16, 48) for _ in range(3))

        def forward(self, x):
            for qkv in self.qkv:
                q, k, v = qkv(x).chunk(3, -1)
                x = x + (q @ k.mT / 4).softmax(-1) @ v
            return x

    model = Inline()
    with FlowWatch(model, sink=(calls := []).append):
        model(torch.randn(1, 5, 16))
    assert [(call.call, call.queries.shape[1]) for call in calls] == [(0, 1), (1, 1), (2, 1)]


def test_heads_of_a_loop_that_share_keys_are_grouped():
    def shared(q, k, v):
        rows = []
        for head in range(HEADS):
            scores = (q[:, :, head] @ k[:, :, head // 2].mT) * SCALE
            weights = scores.masked_fill(hidden(q, k), -torch.inf).softmax(-1)
            rows.append(weights @ v[:, :, head // 2])
        return torch.stack(rows, dim=2)

    model = Model(shared)
    with torch.no_grad(), FlowWatch(model, sink=(calls := []).append):
        model(token_ids(1, 6))
    assert [(call.queries.shape[1], call.keys.shape[1]) for call in calls] == [(4, 2), (4, 2)]


def test_nothing_of_a_forward_is_kept_after_it():
    import gc
    import weakref

    model = Model(matmul)
    seen = []
    with torch.no_grad(), FlowWatch(model, sink=lambda call: seen.append(weakref.ref(call.keys))):
        model(token_ids(1, 6))
        gc.collect()
        assert [ref() for ref in seen] == [None, None]
