"""A scripted module: Python does not know its signature."""

import torch
from parts import VOCAB, WIDTH
from torch import nn


class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens))


def build():
    return torch.jit.script(Bigram())
