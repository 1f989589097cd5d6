"""The prompt in chunks, for forwards that must be told what `generate` tells them."""

from __future__ import annotations

from transformers import LlamaForCausalLM

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks import EQUAL

PROMPT = list(range(5, 17))


class _Told(LlamaForCausalLM):
    """Makes its mask for several tokens on top of others out of the one that it is given."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, **rest):
        on_top = past_key_values is not None and past_key_values.get_seq_length() > 0
        if on_top and input_ids.shape[1] > 1 and attention_mask is None:
            raise ValueError("no mask")
        return super().forward(input_ids, attention_mask, past_key_values=past_key_values, **rest)


def test_chunks_are_tried_again_with_the_mask_that_generate_gives():
    report = kvtrace.check(_Told(tiny_model("llama").config).eval(), PROMPT, ways=["chunks"])
    assert report.verdict == EQUAL
    (chunks,) = [one for one in report.trials if one.name.startswith("chunked")]
    assert chunks.report is not None, chunks
