"""An attribute turns the cache on."""

from parts import Core, length


class Switched(Core):
    def __init__(self):
        super().__init__()
        self.use_cache, self.past = False, None

    def forward(self, tokens):
        if not self.use_cache:
            return self.full(tokens)
        logits, self.past = self.grown(tokens, self.past, length(self.past))
        return logits


def build():
    return Switched()
