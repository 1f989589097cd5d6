"""The model is inside of one that only knows a loss."""

from parts import Core, length
from torch import nn
from torch.nn import functional as F


class Net(Core):
    def forward(self, x, cache=None):
        return self.grown(x, cache, length(cache))


class Trainer(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        logits, _ = self.net(x[:, :-1])
        return F.cross_entropy(logits.transpose(1, 2), x[:, 1:])


def build():
    return Trainer()
