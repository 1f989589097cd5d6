"""Rows that stand where others should: another block, an earlier moment, the last slot of all."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from builders.scenes import Toy
from kvtrace import check
from kvtrace.analysis.checks.diagnose import diagnose
from verify.bugs import llama


def test_a_block_that_is_read_for_another_is_no_mask():
    toy = Toy()
    rows = np.arange(12)
    rows[4:8] = rows[:4]
    found = diagnose(toy.scene(k=toy.k[:, rows], v=toy.v[:, rows]))
    assert (found.name, found.tensor, found.row) == ("WRONG-SLOT", "k", 4)
    assert "does not see places 4 to 7: 4 other rows stand there once more" in found.evidence


@pytest.mark.parametrize(
    ("order", "name"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 11], "HISTORY-LOST"),  # 8 to 10 were taken back
        ([3, 5, 6, 7, 8, 9, 10, 11], "WRONG-SLOT"),  # one index of a ring is off
    ],
)
def test_a_window_that_was_taken_back_is_told_from_a_ring_that_is_off(order, name):
    toy = Toy(window=8)
    scene = toy.scene(k=toy.k[:, order], v=toy.v[:, order], supposed=np.arange(4, 12))
    assert diagnose(scene).name == name


class Saturating(DynamicCache):
    """Sixteen rows at most: what comes then is written to the last slot."""

    fed = 0

    def get_seq_length(self, layer_idx=0):
        return self.fed

    def get_mask_sizes(self, query_length, layer_idx):
        return min(16, self.fed + query_length), 0

    def update(self, key_states, value_states, layer_idx, *more, **named):
        layer = self.layers[layer_idx]
        if layer_idx == 0:
            self.fed += key_states.shape[2]
        if self.fed > 16:
            layer.keys, layer.values = layer.keys[:, :, :15], layer.values[:, :, :15]
        return layer.update(key_states, value_states)


def test_a_full_buffer_whose_last_slot_is_written_again_is_no_wrong_position():
    model = llama()

    @torch.no_grad()
    def drive():
        cache, tokens = Saturating(config=model.config), torch.arange(20, 32)[None]
        for _ in range(8):
            out = model(tokens, past_key_values=cache, use_cache=True)
            tokens = out.logits[:, -1:].argmax(-1)

    found = check(model, run=drive).findings[0]
    assert (found.name, found.step, found.layer, found.tensor) == ("ROW-OVERWRITTEN", 5, 0, "k")
    assert "over that of position 15" in found.evidence
