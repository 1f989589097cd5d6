"""Models that are told with every call how long the prompt was, and read it in both directions."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.verdict import check


class Prefix(nn.Module):
    """Its prompt sees itself both ways, what follows sees what came before.

    Attributes:
        behind: Rows of the prompt's end that a step of one token does not see.
    """

    def __init__(self, behind=0):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.behind = nn.Embedding(20, 8), nn.Linear(8, 20), behind
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(3))

    def forward(self, x, context_length, past=None):
        new, held = x.shape[1], []
        before = 0 if past is None else past[0][0].shape[2]
        rows = torch.arange(before + new)
        prompt = rows < context_length - (self.behind if before else 0)
        seen = (rows <= rows[before:, None]) & (prompt | (rows >= context_length)) | prompt
        x = self.embed(x)
        for at, layer in enumerate(self.layers):
            q, k, v = layer(x)[:, None].chunk(3, -1)
            if past is not None:
                k, v = (torch.cat(pair, 2) for pair in zip(past[at], (k, v), strict=True))
            held.append((k, v))
            x = x + nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)[:, 0]
        return self.head(x), held


@pytest.mark.parametrize(("behind", "names"), [(0, []), (2, ["MASK"])])
def test_a_prompt_stays_as_long_as_every_call_was_told(behind, names, tmp_path):
    model, tokens, past = Prefix(behind), torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5]]), None
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.mul_(4)
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", keep_rows=True):
        for start, end in ((0, 6), (6, 7), (7, 8), (8, 9)):
            _, past = model(tokens[:, start:end], 6, past)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert [one.name for one in report.findings] == names
    assert report.verdict == ("diverged" if names else "equal within rounding")
