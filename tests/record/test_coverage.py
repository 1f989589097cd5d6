"""One architecture of each structure is traced completely; `make nightly` takes all."""

from __future__ import annotations

import pytest

from sweep.examine import examine

ONE_OF_EACH_STRUCTURE = {
    "gpt2": "absolute positions, every head its own keys",
    "qwen3_moe": "grouped queries, query and key norms, experts",
    "gpt_oss": "sliding windows and sinks",
    "gemma2": "softcap",
    "llama4_text": "chunked attention",
    "deepseek_v3": "latents that are expanded",
    "gemma3n_text": "keys and values shared between layers",
    "falcon": "its own call of scaled_dot_product_attention",
    "bloom": "ALiBi, heads in the batch",
    "openai-gpt": "no cache at all",
    "jamba": "recurrent layers between",
    "deepseek_v4": "compressed rows beside the cached ones",
    "inkling2_text": "a sink of each query, relative bias",
    "gemma4_text": "layers that attend for the last token only",
}


@pytest.mark.parametrize("model_type", ONE_OF_EACH_STRUCTURE)
def test_every_attention_step_and_row_is_traced(model_type, tmp_path):
    row = examine(model_type, tmp_path)
    assert row.traced, row
    assert row.lane is not None
    assert row.lane < 1e-4
