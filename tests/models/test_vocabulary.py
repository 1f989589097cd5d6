"""What tables of embeddings say of a model: tokens, positions, or distances between them."""

import pytest
from torch import nn

from kvtrace.models.scripts.vocabulary import positions_of, vocabulary_of


def model(path):
    """Tokens, and a second table by that name."""
    made = nn.ModuleDict({"tokens": nn.Embedding(256, 8)})
    around, _, name = path.rpartition(".")
    if around:
        made[around] = nn.ModuleDict({name: nn.Embedding(512, 8)})
    else:
        made[name] = nn.Embedding(512, 8)
    return made


@pytest.mark.parametrize("path", ["wpe", "pos_emb", "position_embedding", "pos.table"])
def test_a_table_of_positions_says_how_long_a_text_may_be(path):
    assert positions_of(model(path)) == 512
    assert vocabulary_of(model(path)) == 256


@pytest.mark.parametrize("path", ["rel_pos_emb", "pos_emb.relative_attention_bias", "pos_bias"])
def test_a_table_of_distances_does_not(path):
    assert positions_of(model(path)) == 0
    assert vocabulary_of(model(path)) == 256


def test_what_a_config_says_comes_before_a_table_of_positions():
    made = model("wpe")
    made.config = {"max_seq_len": 64, "vocab_size": 200}
    assert (positions_of(made), vocabulary_of(made)) == (64, 200)


def test_a_config_by_any_name_says_how_long_a_text_may_be():
    made = model("tables")
    made.hparams = {"n_ctx": 32}
    assert positions_of(made) == 32
    made.block_size = 16
    assert positions_of(made) == 16
