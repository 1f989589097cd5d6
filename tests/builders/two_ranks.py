"""What each of two ranks runs: `torchrun --nproc-per-node 2 two_ranks.py FOLDER`.

FOLDER holds the models (`gqa`, `mqa`); the traces go there too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import kvtrace

PROMPT = torch.tensor([[5, 6, 7, 8, 9]])
NEW = 4
KV_WHOLE = {f"model.layers.*.self_attn.{one}_proj": "replicate" for one in "kv"}


def generate(model):
    return model.generate(PROMPT, max_new_tokens=NEW, do_sample=False)


def load(folder: Path, plan: object):
    config = DistributedConfig(tp_plan=plan, tp_size=2)
    return AutoModelForCausalLM.from_pretrained(folder, distributed_config=config).eval()


class Attention(nn.Module):
    """Somebody's own: it asks the tensors how many heads there are."""

    def __init__(self):
        super().__init__()
        self.q, self.o = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)
        self.k, self.v = nn.Linear(32, 16, bias=False), nn.Linear(32, 16, bias=False)

    def forward(self, x, cache):
        q, k, v = (
            part(x).unflatten(-1, (-1, 8)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        if cache:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        cache[:] = k, v
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=x.shape[1] > 1, enable_gqa=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


class OwnModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
        self.layers = nn.ModuleList([Attention(), Attention()])

    def forward(self, ids, caches):
        x = self.embedding(ids)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = x + layer(x, cache)
        return self.head(x)


def own_model():
    torch.manual_seed(0)
    return OwnModel().eval()


@torch.no_grad()
def decode(model):
    caches, ids = ([], []), PROMPT
    for _ in range(NEW):
        ids = model(ids, caches)[:, -1].argmax(-1, keepdim=True)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    model = load(folder / "gqa", "auto")
    rank = dist.get_rank()
    for mode in ("once", "each"):
        (folder / mode).mkdir(exist_ok=True)
        with kvtrace.record(model, folder / mode / "run.kvt", recompute=mode):
            generate(model)
    (folder / "met").mkdir(exist_ok=True)
    with kvtrace.record(folder / "met" / "run.kvt"):
        generate(model)
    if rank == 0:
        with kvtrace.record(model, folder / "alone.kvt"):
            generate(model)
    else:
        generate(model)
    try:
        with kvtrace.record(model, folder / "failed.kvt"):
            generate(model)
            if rank == 1:
                raise ArithmeticError("rank 1 gives up")
    except ArithmeticError:
        pass
    model = load(folder / "mqa", KV_WHOLE)
    with kvtrace.record(model, folder / "mqa.kvt", recompute="off"):
        generate(model)
    model = own_model()
    styles = {one: ColwiseParallel() for one in "qkv"} | {"o": RowwiseParallel()}
    for layer in model.layers:
        parallelize_module(layer, init_device_mesh("cpu", (2,)), styles)
    with kvtrace.record(model, folder / "own.kvt"):
        decode(model)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
