"""Continuous batching of tiny models, and what its pool really holds, read off block by block."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchProcessor

from builders.tiny_models import tiny_model
from builders.ways import ready

GREEDY = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0}


def engine_model(name: str = "llama", **options):
    """A tiny model that never ends a text by itself."""
    return ready(tiny_model(name, **options))


def settings(**options) -> ContinuousBatchingConfig:
    """Small blocks, and room for everybody."""
    return ContinuousBatchingConfig(**{"page_size": 4, "num_blocks": 32, **options})


def batched(model, prompts, new=5, engine=None, **options):
    """Token ids that `generate_batch` makes, by the name of the request."""
    config = GenerationConfig(**{**GREEDY, "max_new_tokens": new, **options})
    found = model.generate_batch(
        prompts,
        generation_config=config,
        continuous_batching_config=engine or settings(),
        progress_bar=False,
    )
    return {name: list(one.generated_tokens) for name, one in found.items()}


@dataclass
class LivePool:
    """What a pool held after each forward: (request, length) to layer to keys, values, slots."""

    rows: dict = field(default_factory=dict)

    def look(self, processor) -> None:
        for one in processor.inputs_and_outputs.requests_in_batch:
            state = one.state
            found = {}
            for layer, allocator in processor.cache.layer_to_allocator.items():
                window = getattr(allocator, "sliding_window", None)
                length = state.position_offset
                start = 0 if window is None else max(0, length - window)
                index, slots = [], []
                for position in range(start, length):
                    ring = position if window is None else position % window
                    page = allocator.tokens_per_page
                    block = allocator.block_table[state.request_id][ring // page]
                    index.append(block * allocator.block_physical_stride + ring % page)
                    slots.append(block * page + ring % page)
                keys, values = allocator._kv_token_views[layer]
                found[layer] = (keys[index].cpu(), values[index].cpu(), slots)
            self.rows[state.request_id, state.position_offset] = found


@contextlib.contextmanager
def after_each_forward(look):
    """Calls back in the engine's thread after each forward, before the engine moves anything."""
    original = ContinuousBatchProcessor.update_batch

    def update_batch(self):
        look(self)
        return original(self)

    ContinuousBatchProcessor.update_batch = update_batch
    try:
        yield
    finally:
        ContinuousBatchProcessor.update_batch = original


@contextlib.contextmanager
def live_pool():
    """Looks into the pool after each forward."""
    pool = LivePool()
    with after_each_forward(pool.look):
        yield pool


@contextlib.contextmanager
def after_tokens(name, count, then=lambda: None):
    """Does something once, in the engine's thread, when a request has so many tokens."""
    done = threading.Event()

    def look(processor):
        state = processor.scheduler.active_requests.get(name)
        if state is not None and state.generated_len() >= count and not done.is_set():
            done.set()
            then()

    with after_each_forward(look):
        yield done


def alone(model, prompt, new):
    """The same request by `generate`: new tokens, and the cache it leaves."""
    out = model.generate(
        torch.tensor([prompt], device=model.device),
        return_dict_in_generate=True,
        max_new_tokens=new,
        do_sample=False,
    )
    return out.sequences[0, len(prompt) :].tolist(), out.past_key_values
