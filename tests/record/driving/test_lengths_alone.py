"""Models of which only some tokens, or some number of them, go through: that is said as it is."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.report import UNCHECKED
from kvtrace.errors import ModelError
from kvtrace.record.driving import Wish, choose_drive


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.head = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(16, 20)

    def forward(self, ids):
        return self.head(self.attend(self.embed(ids), None)[0])

    def attend(self, x, past):
        q, k, v = self.mix(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        seen = torch.ones(q.shape[2], k.shape[2]).tril(k.shape[2] - q.shape[2]) > 0
        out = nn.functional.scaled_dot_product_attention(q, k, v, seen)
        return out.transpose(1, 2).flatten(2), (k, v)


class Deep(Small):
    """Its attention is for half of the tokens, which a router chooses."""

    def forward(self, ids, past=None):
        x = self.embed(ids)
        chosen = x[0].sum(-1).topk(max(1, ids.shape[1] // 2)).indices.sort().values
        mixed, past = self.attend(x[:, chosen], past)
        return self.head(x.index_add(1, chosen, mixed)), past


def test_a_model_exported_for_one_length_says_which_and_what_to_do():
    exported = torch.export.export(Small().eval(), (torch.zeros(1, 8, dtype=torch.long),)).module()
    with pytest.raises(ModelError, match=r"was exported for 8 tokens .* dynamic_shapes"):
        choose_drive(exported, Wish([3, 1, 4, 1, 5], 4, vocabulary=20))


def test_layers_that_leave_tokens_out_are_the_reason_why_nothing_is_compared():
    report = kvtrace.check(Deep(), [[3, 1, 4, 1, 5, 9]], new_tokens=4)
    assert report.verdict == UNCHECKED
    assert "it leaves tokens out, and which rows are whose is not known" in report.reason
