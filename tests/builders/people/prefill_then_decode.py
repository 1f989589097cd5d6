"""No forward: `prefill` makes the cache, `decode` takes it with a token a sequence, [batch]."""

from parts import Core, length


class Split(Core):
    def prefill(self, prompt_ids):
        logits, cache = self.grown(prompt_ids, None, 0)
        return logits[:, -1], cache

    def decode(self, token, cache):
        logits, cache = self.grown(token[:, None], cache, length(cache))
        return logits[:, -1], cache


def build():
    return Split()
