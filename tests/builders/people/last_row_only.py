"""`forward(idx, targets=None)`: logits of the last row alone, and a loss; no cache."""

from parts import Core


class GPT(Core):
    def forward(self, idx, targets=None):
        logits = self.full(idx)
        if targets is None:
            return logits[:, [-1], :], None
        return logits, logits.flatten(0, 1)[:, 0].mean()


def build():
    return GPT()
