"""Once caches are set up, the caller must give a mask over all that they can hold."""

import torch
from parts import HEADS, LAYERS, WIDTH, Core


class Decoder(Core):
    def __init__(self):
        super().__init__()
        self.kv = None

    def setup_caches(self, batch_size, dtype, *, decoder_max_seq_len=None):
        shape = (LAYERS, 2, batch_size, HEADS, decoder_max_seq_len, WIDTH // HEADS)
        self.kv = torch.zeros(shape, dtype=dtype)

    def forward(self, tokens, *, mask=None, input_pos=None):
        if self.kv is None:
            return self.full(tokens)
        if mask is None or input_pos is None:
            raise ValueError("causal masks and positions must be provided during inference")
        x = self.embed(tokens, input_pos)
        places = input_pos.flatten()
        for n in range(LAYERS):
            q, k, v = self.project(n, x)
            self.kv[n, 0][:, :, places], self.kv[n, 1][:, :, places] = k, v
            x = self.mix(n, x, q, self.kv[n, 0], self.kv[n, 1], mask[:, None])
        return self.head(x)


def build():
    return Decoder()
