"""Models that accelerate spreads over memory and disk are recorded like any other."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import kvtrace
from builders.recorded import assert_caches_agree, record
from builders.tiny_models import tiny_model
from kvtrace.trace import Tensor

LAYERS = {"llama": "model.layers.{}", "gpt2": "transformer.h.{}", "bloom": "transformer.h.{}"}


def spread(model, layers, folder):
    """The same model, every layer but the first on disk."""
    model.save_pretrained(folder)
    inside = layers.removesuffix(".{}")
    places = {layers.format(0): "cpu"}
    places |= {layers.format(i): "disk" for i in range(1, len(model.get_submodule(inside)))}
    for path, module in model.named_modules():
        held = any(True for _ in module.parameters(recurse=False))
        if held and not path.startswith(inside):
            places[path] = "cpu"
    return AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=folder / "offloaded"
    ).eval()


@pytest.mark.parametrize("kind", LAYERS)
def test_an_offloaded_model_is_recorded_as_if_it_were_in_memory(kind, tmp_path):
    model = tiny_model(kind)
    offloaded = spread(model, LAYERS[kind], tmp_path / "model")
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    forwards = [module.forward for module in offloaded.modules()]
    prompt = torch.tensor([[3, 4, 5, 6]])

    def run(one):
        return one.generate(prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False)

    plain, _, said = record(model, lambda: run(model), tmp_path / "plain.kvt", recompute="once")
    trace, held, answer = record(
        offloaded, lambda: run(offloaded), tmp_path / "a.kvt", recompute="once"
    )
    assert torch.equal(said, answer)
    assert_caches_agree(trace, held)
    assert (trace.meta.sites, trace.meta.cache_layers) == (
        plain.meta.sites,
        plain.meta.cache_layers,
    )
    for one, other in zip(trace, plain, strict=True):
        assert one.cost == other.cost
        for site in range(len(trace.meta.sites)):
            for tensor in (Tensor.QUERIES, Tensor.OUTPUT):
                mine = trace.source.site_rows(one.number, site, tensor, None)
                theirs = plain.source.site_rows(one.number, site, tensor, None)
                # kernels may round by where a matrix lies in memory
                assert np.abs(mine - theirs).max() <= 1e-6
        assert trace.compared(one.number) is not None
    assert [module.forward for module in offloaded.modules()] == forwards
    assert trace.meta.model.device == "cpu, disk"
    assert trace.meta.model.weight_bytes == plain.meta.model.weight_bytes


def test_a_model_in_one_place_says_which(tmp_path):
    model = tiny_model("gpt2")
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        model(torch.tensor([[1, 2]]))
    assert kvtrace.open(tmp_path / "a.kvt").meta.model.device == "cpu"
