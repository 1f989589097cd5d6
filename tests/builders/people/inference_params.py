"""The caller moves the offset on in the object that holds the cache."""

from dataclasses import dataclass, field

import torch
from parts import LAYERS, Core


@dataclass
class InferenceParams:
    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    key_value_memory_dict: dict = field(default_factory=dict)


class Offset(Core):
    def forward(self, input_ids, inference_params=None):
        start = 0 if inference_params is None else inference_params.seqlen_offset
        x = self.embed(input_ids, torch.arange(start, start + input_ids.shape[1]))
        for n in range(LAYERS):
            q, k, v = self.project(n, x)
            if inference_params is not None:
                held = inference_params.key_value_memory_dict
                if n in held:
                    k = torch.cat((held[n][0][:, :, :start], k), 2)
                    v = torch.cat((held[n][1][:, :, :start], v), 2)
                held[n] = (k, v)
            x = self.mix(n, x, q, k, v)
        return self.head(x)


def build():
    return Offset()
