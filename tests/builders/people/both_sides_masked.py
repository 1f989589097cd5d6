"""A source and a target, and a mask that must be given for each."""

import torch
from parts import LAYERS, Core


class Translator(Core):
    def forward(self, src_sequence, tgt_sequence, src_mask, tgt_mask):
        h = self.embed(tgt_sequence, torch.arange(tgt_sequence.shape[1]))
        for n in range(LAYERS):
            h = self.mix(n, h, *self.project(n, h), tgt_mask.unsqueeze(1))
        hidden = src_mask.unsqueeze(1).expand(1, 1, 1, src_sequence.shape[1])
        return self.head(h) + 0.0 * (self.full(src_sequence) * hidden.transpose(1, 3)[0]).mean()


def build():
    return Translator()
