"""The cache is a default argument that all calls share."""

from parts import Core, length


class Shared(Core):
    def forward(self, tokens, memory={}):  # noqa: B006
        logits, memory["rows"] = self.grown(tokens, memory.get("rows"), length(memory.get("rows")))
        return logits


def build():
    return Shared()
