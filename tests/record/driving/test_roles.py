"""What parameters are for is told by their names."""

import pytest
import torch

from kvtrace.record.driving.ways.roles import signature_of

ROLES = {
    "def forward(self, idx, targets=None): ...": {"idx": "ids", "targets": "other"},
    "def forward(self, tokens, tokens_position): ...": {
        "tokens": "ids",
        "tokens_position": "position",
    },
    "def forward(self, x, start_pos: int): ...": {"x": "ids", "start_pos": "position"},
    "def forward(self, mask, idx, input_pos=None): ...": {
        "mask": "mask",
        "idx": "ids",
        "input_pos": "position",
    },
    "def forward(self, src, tgt, src_mask=None): ...": {
        "src": "source",
        "tgt": "ids",
        "src_mask": "mask",
    },
    "def forward(self, input_ids, decoder_input_ids, src_mask=None): ...": {
        "input_ids": "source",
        "decoder_input_ids": "ids",
        "src_mask": "mask",
    },
    "def forward(self, input_ids, attention_mask=None, decoder_input_ids=None): ...": {
        "input_ids": "source",
        "attention_mask": "mask",
        "decoder_input_ids": "ids",
    },
    "def forward(self, input, return_type=None, tokens=None): ...": {
        "input": "ids",
        "return_type": "flag",
        "tokens": "other",
    },
    "def forward(self, input_ids, targets): ...": {"input_ids": "ids", "targets": "other"},
    "def forward(self, tokens, use_cache=False, past_key_values=None, cache_position=None): ...": {
        "tokens": "ids",
        "use_cache": "flag",
        "past_key_values": "cache",
        "cache_position": "position",
    },
    "def forward(self, index, cache: bool = False, layer_past=None, kv_len=0): ...": {
        "index": "ids",
        "cache": "flag",
        "layer_past": "cache",
        "kv_len": "position",
    },
    "def forward(self, x, kv_cache=None, current_position_ids=None): ...": {
        "x": "ids",
        "kv_cache": "cache",
        "current_position_ids": "position",
    },
    "def forward(self, tokens, segment_pos, cache=None): ...": {
        "tokens": "ids",
        "segment_pos": "position",
        "cache": "cache",
    },
    "def forward(self, q, /, k_cache, v_cache, *, offset=0): ...": {
        "q": "ids",
        "k_cache": "cache",
        "v_cache": "cache",
        "offset": "position",
    },
}


@pytest.mark.parametrize("code", ROLES)
def test_parameters_are_told_by_their_names(code):
    space = {}
    exec(code, space)
    made = type("Named", (torch.nn.Module,), {"forward": space["forward"]})()
    assert {one.name: one.role for one in signature_of(made).parameters} == ROLES[code]
