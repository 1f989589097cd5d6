"""Estimates, by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kvtrace.errors import MemoryLimitError
from kvtrace.models.memory import cache_bytes, check_fits, free_bytes, resident_bytes

CPU = torch.device("cpu")


def test_the_cache_of_gpt2_at_1024_tokens_is_72_mib_in_fp32():
    gpt2 = SimpleNamespace(num_hidden_layers=12, num_attention_heads=12, hidden_size=768)
    # 12 layers · 1024 tokens · 2 · 768 numbers · 4 bytes
    assert cache_bytes(gpt2, 1024, 4) == 75_497_472


def test_grouped_queries_count_kv_heads_and_mla_its_latent():
    grouped = SimpleNamespace(
        num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=16
    )
    assert cache_bytes(grouped, 10, 2) == 4 * 10 * 2 * 2 * 16 * 2
    latent = SimpleNamespace(
        num_hidden_layers=61, num_attention_heads=128, kv_lora_rank=512, qk_rope_head_dim=64
    )
    assert cache_bytes(latent, 1, 2) == 61 * 576 * 2


def test_resident_bytes_count_buffers_and_share_tied_weights():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    model.register_buffer("places", torch.zeros(5, dtype=torch.int64))
    assert resident_bytes(model, None) == (12 + 3 + 3) * 4 + 40
    assert resident_bytes(model, torch.bfloat16) == (12 + 3 + 3) * 2 + 40


def test_more_than_is_free_is_refused_with_the_numbers():
    free = free_bytes(CPU)
    assert free is not None
    assert free > 1 << 20
    check_fits(1 << 10, 1 << 10, CPU)
    with pytest.raises(MemoryLimitError, match=r"1\.00 EiB of weights and 512 B of cache"):
        check_fits(1 << 60, 512, CPU)
