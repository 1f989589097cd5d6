"""A class that wants a config; the file has a dataclass of it. Logits and loss, no cache."""

from dataclasses import dataclass

from parts import VOCAB, Core


@dataclass
class GPTConfig:
    vocab_size: int = VOCAB
    block_size: int = 64


class GPT(Core):
    def __init__(self, config):
        super().__init__(config.vocab_size)
        self.config = config

    def forward(self, idx, targets=None):
        return self.full(idx), None
