"""Settings of configurations that may raise when they are asked for."""

from kvtrace.configs import context_length, count, setting, word


class PerLayer:
    num_hidden_layers = 4
    tie = True

    @property
    def head_dim(self):
        raise RuntimeError("it differs by layer: ask each of them")


def test_a_setting_that_raises_is_not_said():
    assert setting(PerLayer(), "head_dim") is None
    assert setting(PerLayer(), "num_hidden_layers") == 4
    assert setting(None, "head_dim") is None


def test_the_first_positive_integer_counts():
    assert count(PerLayer(), "head_dim", "tie", "num_hidden_layers") == 4
    assert count(PerLayer(), "head_dim") == 0


def test_a_word_is_text_and_nothing_else():
    assert word(PerLayer(), "num_hidden_layers") == ""
    assert word(PerLayer(), "head_dim") == ""
    assert word(PerLayer, "__name__") == "PerLayer"


def test_a_dictionary_is_asked_as_an_object_is():
    assert setting({"head_dim": 8}, "head_dim") == 8
    assert setting({"head_dim": 8}, "items") is None
    assert context_length({"n_ctx": 32}) == 32
    assert context_length(PerLayer()) == 0
