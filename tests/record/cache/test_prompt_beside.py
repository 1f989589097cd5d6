"""Caches that keep the rows of a prompt in another tensor than those that come after it."""

import pytest
import torch

from builders.recorded import record
from builders.tiny_models import tiny_config
from kvtrace.analysis.checks import check


def test_a_crop_leaves_a_prompt_that_is_kept_beside_the_rows_of_its_answer(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = tiny_config("unlimited_ocr")
    model = transformers.UnlimitedOcrForConditionalGeneration._from_config(config).eval()
    ids = torch.tensor([[7, 3, 21, 9, 30, 14, 7, 3, 11, 25, 40, 8]])

    def run():
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        return model.generate(ids, prompt_lookup_num_tokens=2, max_new_tokens=6, **options)

    trace, *_ = record(model, run, tmp_path / "run.kvt", recompute="once")
    crops = [one for step in trace for one in step.events if one.kind == "crop"]
    assert crops
    assert min(min(one.lengths_after) for one in crops) >= ids.shape[1]
    assert check(trace).ok
