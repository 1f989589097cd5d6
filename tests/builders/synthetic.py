"""A synthetic run: a prompt, then one token a step, through random but real attention."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from builders.memory import MemorySource
from kvtrace.trace import (
    CacheLayer,
    CacheStep,
    Cost,
    Flops,
    Lane,
    LaneStep,
    LogitDiff,
    Mask,
    Meta,
    ModelCard,
    Run,
    Sampling,
    Site,
    SiteStep,
    Step,
    Tensor,
    TopLogits,
    Trace,
)
from kvtrace.trace.weights import derive, mix


class Shape(Struct, frozen=True):
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    dim: int = 8
    prompt: int = 5
    decode: int = 6
    window: int | None = None


WORDS = ["Anna", " has", " the", " red", " key", ".", " Who", "?", "\x1b[2J", "[/foo]", "\n", ""]


LANE = "recomputed"


_SHAPE = Shape()


def synthetic_trace(shape: Shape = _SHAPE, *, seed: int = 0, noise: float = 1e-7) -> Trace:
    """The whole run as a trace; `noise` is the relative difference of the recomputed lane."""
    source = MemorySource(_meta(shape))
    source.texts = dict(enumerate(WORDS))
    rng = np.random.default_rng(seed)
    total = shape.prompt + shape.decode
    tokens = rng.integers(0, len(WORDS), total + 1)
    _add_pass(source, shape, tokens[:total])
    for layer in range(shape.layers):
        for tensor in (Tensor.KEYS, Tensor.VALUES):
            rows = rng.standard_normal((shape.kv_heads, total, shape.dim)).astype(np.float32)
            source.cell_tensors[layer, tensor] = rows
            shift = noise * rng.standard_normal(rows.shape)
            source.pass_tensors[LANE, 0, tensor, layer] = (rows + shift).astype(np.float32)[None]
        for tensor in (Tensor.QUERIES, Tensor.OUTPUT):
            empty = np.zeros((1, shape.heads, total, shape.dim), np.float32)
            source.pass_tensors[LANE, 0, tensor, layer] = empty
    for number in range(shape.decode + 1):
        _add_step(source, shape, number, tokens, rng, noise)
    return Trace(source)


def without_attention() -> Trace:
    """A run in which no attention was seen, as of a recurrent model."""
    trace = synthetic_trace()
    trace.source.meta = replace(trace.meta, sites=(), cache_layers=(), lanes=())
    for number, step in trace.source.steps.items():
        trace.source.steps[number] = replace(step, caches=(), sites=())
    return trace


def _add_pass(source, shape, tokens):
    """The recomputed lane's own forward over all places."""
    total, layers = len(tokens), tuple(range(shape.layers))
    run = ((Run(0, total, 0, 0),),)
    none = (None,) * shape.layers
    source.passes[LANE, 0] = Step(
        number=0,
        phase="prefill",
        parent=None,
        tokens=(tuple(int(token) for token in tokens),),
        positions=(tuple(range(total)),),
        chosen=(None,),
        caches=(CacheStep(layers, 0, total, run, run, 0, total),),
        sites=(
            SiteStep(
                layers,
                Mask(offset=0, window=shape.window),
                none,
                (0.0,) * shape.layers,
                (0,) * shape.layers,
            ),
        ),
    )


def _meta(shape: Shape) -> Meta:
    sites = tuple(
        Site(
            index=i,
            module=f"model.layers.{i}.self_attn",
            call=0,
            layer=i,
            kind="self",
            num_heads=shape.heads,
            num_kv_heads=shape.kv_heads,
            key_dim=shape.dim,
            value_dim=shape.dim,
            scale=shape.dim**-0.5,
            reads=i,
            window=shape.window,
        )
        for i in range(shape.layers)
    )
    caches = tuple(
        CacheLayer(
            index=i,
            layer=i,
            kind="sliding" if shape.window else "dynamic",
            num_kv_heads=shape.kv_heads,
            key_dim=shape.dim,
            value_dim=shape.dim,
            window=shape.window,
        )
        for i in range(shape.layers)
    )
    return Meta(
        model=ModelCard("synthetic", "Synthetic", "llama", weight_bytes=1 << 20),
        sites=sites,
        cache_layers=caches,
        lanes=(Lane("recomputed", "each", "float32", 2e-5, "float32 rounding"),),
        sampling=Sampling(max_new_tokens=shape.decode, seed=0),
        versions={"torch": "2.13.0"},
        prompt="Anna has the red key.",
    )


def _add_step(source, shape, number, tokens, rng, noise):
    new = shape.prompt if number == 0 else 1
    end = shape.prompt + number
    start = 0 if shape.window is None else max(0, end - new - (shape.window - 1))
    kept_start = 0 if shape.window is None else max(0, end - (shape.window - 1))
    attended = (Run(start, end - start, 0, start),)
    kept = (Run(kept_start, end - kept_start, 0, kept_start),)
    layers = tuple(range(shape.layers))
    mask = Mask(offset=end - start - new, window=shape.window)
    for layer in layers:
        _attend(source, shape, number, layer, (start, end, new), mask, rng, noise)
    ids = tuple(int(i) for i in rng.permutation(len(WORDS))[:5])
    logits = tuple(sorted((float(x) for x in rng.standard_normal(5) * 3), reverse=True))
    source.steps[number] = Step(
        number=number,
        phase="decode" if number else "prefill",
        parent=number - 1 if number else None,
        tokens=(tuple(int(t) for t in tokens[end - new : end]),),
        positions=(tuple(range(end - new, end)),),
        chosen=(int(tokens[end]),),
        top=(TopLogits(ids, logits, float(np.log(np.exp(logits).sum()) + 0.1)),),
        caches=(
            CacheStep(
                layers,
                end - new,
                new,
                (attended,),
                (kept,),
                end - new - start,
                end - kept_start,
            ),
        ),
        sites=(
            SiteStep(
                layers,
                mask,
                (1e-7,) * shape.layers,
                (1.5,) * shape.layers,
                (0,) * shape.layers,
            ),
        ),
        cost=_cost(shape, new, end),
        elapsed_ns=900_000 if number else 1_400_000,
        recorder_ns=20_000,
    )
    source.lane_steps[LANE, number] = _compare(source, shape, number, (end - new, end))


def _attend(source, shape, number, layer, span, mask, rng, noise):
    start, end, new = span
    site = source.meta.sites[layer]
    q = rng.standard_normal((shape.heads, new, shape.dim)).astype(np.float32)
    keys = source.cell_tensors[layer, Tensor.KEYS][:, start:end]
    values = source.cell_tensors[layer, Tensor.VALUES][:, start:end]
    out = mix(derive(site, q, keys, mask.visible(0, new, end - start)[None]).weights, values)
    for tensor, rows in ((Tensor.QUERIES, q), (Tensor.OUTPUT, out)):
        source.site_tensors[number, layer, tensor] = rows[None]
        moved = (rows * (1 + noise * rng.standard_normal(rows.shape))).astype(np.float32)
        source.pass_tensors[LANE, 0, tensor, layer][0, :, end - new : end] = moved


def _cost(shape, new, end):
    def flops(rows):
        attention = 2 * shape.layers * shape.heads * rows * end * shape.dim
        return Flops(4096 * rows, attention, attention, 1024 * rows, 8192 * rows, 512, 512, 512)

    row = 2 * shape.kv_heads * shape.dim * 4 * shape.layers
    weights = 1 << 20
    held = row * (end - new), row * new, row * end
    return Cost(flops(new), flops(end), weights, *held, weights)


def _compare(source, shape, number, span):
    grid = (shape.layers, 4, shape.heads)
    max_abs = np.full(grid, np.nan, np.float32)
    rms, reference = max_abs.copy(), max_abs.copy()
    row = np.full(grid, -1, np.int32)
    dim, beyond = row.copy(), np.full(grid, -1, np.int64)
    for layer in range(shape.layers):
        for tensor in Tensor:
            mine = _new_rows(source, number, layer, tensor, span)
            theirs = source.pass_tensors[LANE, 0, tensor, layer][0][:, span[0] : span[1]]
            delta = np.abs(mine - theirs)
            for head in range(mine.shape[0]):
                where = np.unravel_index(delta[head].argmax(), delta[head].shape)
                at = (layer, int(tensor), head)
                max_abs[at] = delta[head].max()
                rms[at] = np.sqrt((delta[head] ** 2).mean())
                reference[at] = np.abs(theirs[head]).max()
                row[at], dim[at] = where
                beyond[at] = (delta[head] > 2e-5 * reference[at]).sum()
    return LaneStep(
        "recomputed",
        number,
        max_abs,
        rms,
        reference,
        np.where(row >= 0, 0, -1).astype(np.int32),
        row,
        dim,
        beyond,
        logits=(LogitDiff(1e-6, 1.0, 3, 3),),
        elapsed_ns=1_300_000,
        passes=((0, 0, span[0]),),
    )


def _new_rows(source, number, layer, tensor, span):
    if tensor in (Tensor.QUERIES, Tensor.OUTPUT):
        return source.site_tensors[number, layer, tensor][0]
    return source.cell_tensors[layer, tensor][:, span[0] : span[1]]
