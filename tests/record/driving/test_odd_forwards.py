"""Forwards that mislead: tables called caches, losses for logits, calls that need a length."""

import pytest

from builders.driven import forgotten, run_file
from kvtrace.errors import ModelError

MODEL = """
import torch
from torch import nn

class Rotary(nn.Module):
    def __init__(self):
        super().__init__()
        self.build_rope_cache(32)

    def build_rope_cache(self, max_seq_len=32):
        self.register_buffer("table", torch.arange(max_seq_len).float().cos()[:, None])

    def forward(self, x):
        return x * self.table[:x.shape[1]]

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(256, 8), nn.Linear(8, 24), nn.Linear(8, 256)
        self.rotary, self.decoder = Rotary(), nn.Sequential(nn.Linear(8, 24))

    def predict_all(self, x):
        q, k, v = self.qkv(self.rotary(self.embed(x))).chunk(3, -1)
        self.mask = torch.ones(x.shape[1], x.shape[1]).tril().bool()
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v, self.mask))
"""

LOSS = """
    def forward(self, inputs, labels):
        return nn.functional.cross_entropy(self.predict_all(inputs).mT, labels)
"""

LENGTH = """
    def forward(self, x):
        if x.shape[1] == 1:
            raise ValueError("math domain error")
        return self.predict_all(x)
"""

SHORT = """
    def forward(self, x):
        if x.shape[1] > 8:
            raise ValueError("too long")
        return self.predict_all(x)
"""

MULTIPLIES = """

class Odd(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
"""

MIXED = """
    def predict_all(self, x):
        return self.head(self.embed(x).bfloat16())

    def forward(self, x):
        return self.predict_all(x)
"""

PLAIN = """
    def forward(self, x):
        return self.predict_all(x)
"""

IGNORED = """
    def forward(self, x, padding_mask=None):
        return self.predict_all(x)
"""

LAYERLESS = """
    def forward(self, x):
        return self.predict_all(x)

    def predict(self, x, kv_cache: "KVCache"):
        x = self.embed(x)
        for part, one in zip(self.decoder, kv_cache):
            q, k, v = part(x).chunk(3, -1)
            one[:] = k, v = torch.cat((one[0], k), 1), torch.cat((one[1], v), 1)
            x = x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=q.shape[1] > 1)
        return self.head(x)

class KVCache:
    def __init__(self, decoder: nn.Module, batch_size: int):
        self.held = [[torch.zeros(batch_size, 0, 8)] * 2 for _ in decoder]

    def __iter__(self):
        return iter(self.held)
"""

ROUNDED = """
    def forward(self, x):
        y = self.embed(x)
        logits = self.head(y + self.decoder(y)[..., :8].mean(1, keepdim=True))
        return logits * (1 + 2**-23 * (x[0, 0] % 7))  # as rows of a batch do to each other's
"""

NOT_ALONE = """
    def forward(self, x):
        return self.predict_all(x) / (0.0 if x.shape[1] == 1 else 1.0) * (x.shape[1] > 1)
"""

ENDLESS = """
    def forward(self, x):
        return self.predict_all(x) / 0.0 * 0.0
"""


@pytest.fixture
def odd(tmp_path):
    with forgotten():

        def run(forward):
            (tmp_path / "odd.py").write_text(MODEL + forward)
            return run_file(f"{tmp_path / 'odd.py'}:Odd").driven

        yield run


def test_a_cache_of_tables_is_no_cache(odd):
    driven = odd(PLAIN)
    assert driven.call == "model(x [1, all])"
    assert "no cache was found" in driven.said[0]


def test_a_mask_that_is_never_looked_at_is_no_cache(odd):
    assert odd(IGNORED).call == "model(x [1, all])"


def test_rounding_between_rows_of_a_batch_does_not_turn_tokens_into_sequences(odd):
    driven = odd(ROUNDED)
    assert driven.call == "model(x [1, all])"
    assert "it is not causal" in driven.said[1]


def test_steps_that_are_no_numbers_are_no_sign_of_a_cache(odd):
    assert odd(NOT_ALONE).call == "model(x [1, all])"


def test_a_model_whose_logits_are_no_numbers_is_recorded_all_the_same(odd):
    driven = odd(ENDLESS)
    assert driven.call == "model(x [1, all])"
    assert driven.said[1].startswith("no logit is finite: look where its numbers end")


def test_another_method_is_called_where_forward_gives_a_loss(odd):
    assert odd(LOSS).call == "model.predict_all(x [1, all])"


def test_a_call_that_asked_for_no_cache_is_not_said_to_have_one(odd):
    driven = odd(LENGTH)
    assert driven.call == "model(x [1, all])"
    assert not any("with a cache, a later call raises" in text for text in driven.said)


def test_a_length_that_is_too_long_is_said_beside_the_ones_that_went_well(odd):
    with pytest.raises(ValueError, match="too long") as caught:
        odd(SHORT)
    assert caught.value.__notes__ == ["8 tokens went well, 9 did not; -n asks for fewer"]


def test_parts_of_different_dtypes_are_told_what_may_help(odd):
    with pytest.raises(ModelError, match="as under autocast: try --dtype bfloat16"):
        odd(MIXED)


def test_a_model_that_multiplies_ids_is_told_nothing_of_dtypes(odd):
    with pytest.raises(ModelError) as caught:
        odd(MULTIPLIES)
    assert "same dtype, but got Long" in str(caught.value)
    assert "autocast" not in str(caught.value)


def test_what_is_no_cache_of_theirs_is_not_passed_though_the_steps_agree(odd):
    driven = odd(LAYERLESS)
    assert driven.call == "model.predict(x [1, new], kv_cache=cache)"
    assert "the cache begins as KVCache(…)" in driven.said[0]


BESIDE = {
    "__init__": "",
    "making": """
import torch

def init_cache(cfg, batch_size, cache_length, dtype=torch.bfloat16):
    shape = (batch_size, cache_length, cfg["width"])
    return {name: torch.zeros(shape, dtype=dtype) for name in ("k", "v")}
""",
    "net": """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cfg = {"width": 8}
        self.embed, self.qkv, self.head = nn.Embedding(256, 8), nn.Linear(8, 24), nn.Linear(8, 256)

    def forward(self, tokens, cache=None, start_pos: int = 0):
        q, k, v = self.qkv(self.embed(tokens)).chunk(3, -1)
        if cache is not None:
            end = start_pos + tokens.shape[1]
            cache["k"][:, start_pos:end], cache["v"][:, start_pos:end] = k, v
            k, v = cache["k"][:, :end], cache["v"][:, :end]
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=q.shape[1] > 1)
        return self.head(y)
""",
}


def test_a_function_beside_the_models_class_makes_the_cache_in_the_models_type(tmp_path):
    folder = tmp_path / "beside_it"
    folder.mkdir()
    for name, text in BESIDE.items():
        (folder / f"{name}.py").write_text(text)
    (tmp_path / "mine.py").write_text("import beside_it.making\nfrom beside_it.net import Net\n")
    driven = run_file(f"{tmp_path / 'mine.py'}:Net").driven
    assert "the cache begins as init_cache(…) and is filled in place" in driven.said[0]
    assert driven.call == "model(tokens [1, new], cache=cache, start_pos=start)"
    assert len(driven.said) == 1
