"""Forwards that ask how long each text is."""

import torch

import kvtrace
from builders.driven import run_file
from kvtrace.analysis.checks.verdict import check

MODEL = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(256, 8), nn.Linear(8, 24), nn.Linear(8, 256)

    def forward(self, ids, input_lengths):
        q, k, v = self.qkv(self.embed(ids)).chunk(3, -1)
        places = torch.arange(ids.shape[1], device=input_lengths.device)
        hidden = (places[None] >= input_lengths[:, None])[:, None] | (places > places[:, None])
        scores = (q @ k.transpose(1, 2) / 8**0.5).masked_fill(hidden, -torch.inf)
        return self.head(scores.softmax(-1) @ v)
"""


def test_a_forward_that_asks_how_long_its_text_is_is_told(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MODEL)
    driven = run_file(f"{file}:Mine").driven
    assert driven.call == "model(ids [1, all], input_lengths=lengths [1])"
    assert driven.drive.step([1, 2, 3]).shape == (256,)
    assert driven.drive.again(8, (), [[5, 6, 7]]).step([1, 2, 3]).shape == (256,)


def test_the_other_lane_is_told_the_length_of_the_whole_text(tmp_path):
    space: dict = {}
    exec(MODEL, space)
    model = space["Mine"]()
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        for end in (5, 6, 7):
            model(torch.arange(end)[None], torch.tensor([end]))
    assert check(kvtrace.open(tmp_path / "a.kvt")).findings == ()


READING = """
import torch
from torch import nn

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(256, 8), nn.Linear(8, 256)
        self.read, self.write = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))

    def forward(self, src, src_len, tgt):
        self.told = src_len.tolist()
        padding = torch.arange(src.shape[1])[None] >= src_len[:, None]
        memory, x = self.embed(src), self.embed(tgt)
        later = torch.ones(tgt.shape[1], tgt.shape[1], dtype=torch.bool).triu(1)
        x = x + self.write(x, x, x, attn_mask=later)[0]
        return self.head(x + self.read(x, memory, memory, key_padding_mask=padding)[0])
"""


def test_a_source_is_as_long_as_it_is_whatever_is_written(tmp_path):
    file = tmp_path / "reader.py"
    file.write_text(READING)
    run = run_file(f"{file}:Reader", prompt="hello")
    assert run.driven.call == "model(src=prompt[:-1], tgt [1, all], src_len=lengths [1])"
    assert run.loaded.model.told == [len("hell")]
