"""Nothing takes ids but `generate`; forward wants embeddings."""

import torch
from parts import LAYERS, Core


class Painter(Core):
    def forward(self, embeddings):
        x = embeddings
        for n in range(LAYERS):
            x = self.mix(n, x, *self.project(n, x))
        return x

    def generate(self, ids, max_new_tokens):
        for _ in range(max_new_tokens):
            x = self(self.embed(ids, torch.arange(ids.shape[1])))
            ids = torch.cat((ids, self.head(x)[:, -1:].argmax(-1)), 1)
        return ids


def build():
    return Painter()
