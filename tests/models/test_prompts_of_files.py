"""What reads the prompt where people's files bring no tokenizer of a known kind."""

from types import ModuleType, SimpleNamespace

import pytest

from kvtrace.errors import UsageError
from kvtrace.models.scripts.found_tokenizer import find_tokenizer

READERS = {
    "stoi": ("stoi = {'b': 7, 'a': 4}\nitos = {4: 'a', 7: 'b'}", (4, 7), "the file's stoi"),
    "char_to_idx": ("char_to_idx = {'b': 7, 'a': 4}", (4, 7), "the file's char_to_idx"),
    "functions": (
        "encode = lambda text: [9, 9]\ndecode = lambda ids: 'z'",
        (9, 9),
        "the file's encode and decode",
    ),
    "an object": (
        "class T:\n    def encode(self, t): return [3]\n    def decode(self, i): return 'q'\n"
        "tokenizer = T()",
        (3,),
        "the file's tokenizer",
    ),
    "words": ("word2idx = {'hello': 1, 'ab': 2, '<unk>': 0}", (2,), "the file's word2idx"),
    "nothing": ("", (97, 98), "the prompt is read as bytes"),
    "a list of another size": ("chars = ['a', 'b']", (97, 98), "the prompt is read as bytes"),
}


@pytest.mark.parametrize("kind", READERS)
def test_the_prompt_is_read_by_what_the_file_has(mine, kind):
    code, ids, said = READERS[kind]
    found = mine(f"{code}\n", "Small")
    assert found.prompt.ids == ids
    assert said in found.chosen


def test_entries_read_nothing_where_no_model_says_how_many_there_are():
    script = ModuleType("theirs")
    script.itos = ["b", "q", "a"]
    assert find_tokenizer(script, SimpleNamespace()) is None


@pytest.mark.parametrize("entries", ["['b', 'q', 'a']", "{0: 'b', 1: 'q', 2: 'a'}"])
def test_entries_by_their_number_read_the_prompt(mine, entries):
    found = mine(f"itos = {entries}\ndef make():\n    return Small(3)\n", "make")
    assert found.prompt.ids == (2, 0)
    assert found.tokenizer.decode(1) == "q"
    assert "the file's itos" in found.chosen


def test_a_table_on_the_model_reads_the_prompt(mine):
    code = "def make():\n    model = Small()\n    model.stoi = {'a': 1, 'b': 2}\n    return model\n"
    assert mine(code, "make").prompt.ids == (1, 2)


def test_characters_are_numbered_for_a_vocabulary_too_small_for_bytes(mine):
    found = mine("def make():\n    return Small(65)\n", "make", prompt="cab a")
    assert found.prompt.ids == (3, 1, 2, 0, 1)
    assert "knows 65 tokens, too few for bytes" in found.chosen
    assert [found.tokenizer.decode(one) for one in (0, 3, 64)] == [" ", "c", "<64>"]


def test_numbers_are_token_ids_for_a_vocabulary_too_small_for_bytes(mine):
    found = mine("def make():\n    return Small(65)\n", "make", prompt="64 3, 0")
    assert found.prompt.ids == (64, 3, 0)
    assert "the prompt is read as token ids" in found.chosen
    assert found.tokenizer.decode(64) == " 64"


def test_numbers_are_text_for_a_vocabulary_of_bytes(mine):
    assert mine("", "Small", prompt="1 2").prompt.ids == (49, 32, 50)


def test_more_characters_than_tokens_are_refused_with_the_remedy(mine):
    told = r"id 97 .* vocabulary of 4.* give token ids, .* or its tokenizer: .* \(model, stoi\)"
    with pytest.raises(UsageError, match=told):
        mine("def make():\n    return Small(4)\n", "make", prompt="abcde")


def test_positions_are_no_vocabulary_and_bound_the_context(mine):
    code = (
        "def make():\n    m = Small(40)\n    m.wpe = nn.Embedding(64, 8)\n    return m, {'a': 0}\n"
    )
    found = mine(code, "make", prompt="a")
    assert (found.card.vocab_size, found.context_length) == (40, 64)
