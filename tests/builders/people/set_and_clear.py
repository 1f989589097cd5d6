"""`set_kv_cache` and `clear_kv_cache`; without a cache, `input_pos` is refused."""

import torch
from parts import HEADS, LAYERS, WIDTH, Core


class GPT(Core):
    def __init__(self):
        super().__init__()
        self.max_seq_length, self.kv = 64, None

    def set_kv_cache(self, batch_size, max_seq_length=None, device=None, dtype=None):
        length = max_seq_length or self.max_seq_length
        shape = (LAYERS, 2, batch_size, HEADS, length, WIDTH // HEADS)
        self.kv = torch.zeros(shape, device=device, dtype=dtype)

    def clear_kv_cache(self):
        self.kv = None

    def forward(self, idx, input_pos=None, lm_head_chunk_size=0):
        if input_pos is None:
            return self.full(idx)
        if self.kv is None:
            raise TypeError("You need to call `gpt.set_kv_cache()`")
        end = int(input_pos[-1]) + 1
        x = self.embed(idx, input_pos)
        for n in range(LAYERS):
            q, k, v = self.project(n, x)
            self.kv[n, 0][:, :, input_pos], self.kv[n, 1][:, :, input_pos] = k, v
            x = self.mix(n, x, q, self.kv[n, 0][:, :, :end], self.kv[n, 1][:, :, :end])
        return self.head(x)


def build():
    return GPT()
