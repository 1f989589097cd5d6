"""What each of two ranks runs: `torchrun --nproc-per-node 2 two_ranks.py FOLDER`.

FOLDER holds the models (`gqa`, `mqa`); the traces go there too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
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
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
