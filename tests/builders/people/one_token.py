"""It takes one token at a time, the prompt's too: `forward(tokens [1, 1], start_pos)`."""

from parts import Core


class Single(Core):
    past = None

    def forward(self, tokens, start_pos):
        assert tokens.shape[1] == 1, "one token at a time"
        logits, self.past = self.grown(tokens, self.past if start_pos else None, start_pos)
        return logits


def build():
    return Single()
