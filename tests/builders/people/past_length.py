"""The past must come with its length; one row of logits comes back, [1, vocab]."""

from parts import Core


class Counted(Core):
    def forward(self, x, past=None, past_length=0):
        logits, rows = self.grown(x, past, past_length)
        return logits[:, -1], rows


def build():
    return Counted()
