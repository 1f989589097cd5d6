"""The factory has set caches up: masks must reach over all of them, however few tokens come."""

import torch
from mask_of_capacity import Decoder


def build():
    model = Decoder()
    model.setup_caches(1, torch.float32, decoder_max_seq_len=40)
    model.decoder_max_cache_seq_len = 40
    return model
