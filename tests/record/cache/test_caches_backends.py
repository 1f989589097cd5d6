"""Backends of quantised caches as they are installed: what they hand out is what is recorded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

BACKEND = ("hqq==0.2.8.post1", "termcolor")
"""Beside what is there already; its own list asks for much that a cache does not need."""

SCRIPT = """
import sys

import torch

import kvtrace
from builders.tiny_models import tiny_model

kind, path = getattr(torch, sys.argv[1]), sys.argv[2]
model, handed = tiny_model("llama").eval().to(kind), []
model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
ids = torch.tensor([[7, 3, 21, 9, 30, 14, 7, 3]])
few = {"backend": "hqq", "nbits": 4, "q_group_size": 16, "residual_length": 4}


def run():
    options = {"cache_implementation": "quantized", "cache_config": few, "do_sample": False}
    return model.generate(ids, max_new_tokens=12, **options)


from transformers.cache_utils import HQQQuantizedLayer

update = HQQQuantizedLayer.update


def told(self, *args, **options):
    out = update(self, *args, **options)
    handed.append(tuple(part[0].float().clone().numpy() for part in out))
    return out


plain = run()
HQQQuantizedLayer.update = told
with kvtrace.record(model, path, recompute="off"):
    assert torch.equal(run(), plain)
HQQQuantizedLayer.update = update

trace, seen = kvtrace.open(path), iter(handed)
for step in trace:
    for site in trace.meta.sites:
        view, (keys, values) = trace.cache(step.number, site.index), next(seen)
        assert (view.keys == keys).all() and (view.values == values).all(), (step.number, site)
assert next(seen, None) is None
assert trace.cache_layer(0).kind == "quantised", trace.cache_layer(0)
assert any(group.rewritten for step in trace for group in step.caches)
report = kvtrace.check(model, run=run)
assert report.ok, report
"""


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    """A folder with nothing but hqq."""
    folder = tmp_path_factory.mktemp("backend")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*pip, *BACKEND], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_cache_that_hqq_quantises_is_recorded_as_handed_out_and_has_no_bug(
    kind, backend, tmp_path
):
    paths = os.pathsep.join([*filter(None, sys.path), str(backend)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, kind, str(tmp_path / "a.kvt")],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
