"""Ids without a batch, [T] in, [T, vocab] out; the past is a list that grows."""

from parts import Core, length


class Flat(Core):
    def forward(self, tokens, past=None):
        assert tokens.dim() == 1
        logits, rows = self.grown(tokens[None], past, length(past))
        return logits[0], rows


def build():
    return Flat()
