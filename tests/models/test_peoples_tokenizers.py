"""Tokenizers in the shapes that people's factories return them in, read by what they can do."""

import pytest

from kvtrace.errors import ModelError
from kvtrace.models.scripts.adopt import adopt_tokenizer

LETTERS = {letter: number for number, letter in enumerate(" abcdefgh")}
BACK = {number: letter for letter, number in LETTERS.items()}
IDS = [2, 1, 4, 0, 3]  # of "bad c"


def encode(text):
    return [LETTERS[letter] for letter in text]


def decode(ids):
    return "".join(BACK[one] for one in ids)


class Beginning:
    """As Llama's: whether to begin and to end a text must be said."""

    def encode(self, text, bos, eos):
        return [8] * bos + encode(text) + [9] * eos

    def decode(self, ids):
        return decode(ids)


class Special:
    """As a wrapper around tiktoken: which special tokens are read must be said."""

    def encode(self, text, allowed_special):
        assert allowed_special == "all"
        return encode(text)

    def decode(self, ids):
        return decode(ids)


class Pieces:
    """As SentencePiece was called first; a leading space is dropped where it decodes."""

    def EncodeAsIds(self, text):  # noqa: N802 - theirs
        return encode(text)

    def DecodeIds(self, ids):  # noqa: N802 - theirs
        return decode(ids).strip()

    def IdToPiece(self, one):  # noqa: N802 - theirs
        return "▁" if one == 0 else BACK[one]


class Tiktoken:
    """Of an encoding without an end of a text."""

    name, n_vocab = "tiny", 9

    @property
    def eot_token(self):
        raise KeyError("<|endoftext|>")

    def encode(self, text, *, disallowed_special):
        assert disallowed_special == ()
        return encode(text)

    def decode_single_token_bytes(self, one):
        return BACK[one].encode()


class Parting:
    def tokenize(self, text):
        return encode(text)

    def detokenize(self, ids):
        return decode(ids)


class Called:
    def __call__(self, text):
        return encode(text)

    def decode(self, ids):
        return decode(ids)


class Holding:
    """It encodes, and what its ids mean is in a table."""

    def __init__(self):
        self.char_to_idx, self.idx_to_char = LETTERS, BACK

    def encode(self, text):
        return encode(text)


class Handing:
    """As a vocabulary of torchtext: it hands out its table."""

    def get_stoi(self):
        return LETTERS


@pytest.mark.parametrize(
    "brought",
    [
        *(Special(), Pieces(), Tiktoken(), Parting(), Called(), Holding(), Handing()),
        *((LETTERS, BACK), (BACK, LETTERS), LETTERS, BACK, (encode, decode)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_it_reads_a_text_and_spells_each_token(brought):
    tokenizer = adopt_tokenizer(brought)
    assert tokenizer.encode("bad c") == IDS
    assert [tokenizer.decode(one) for one in IDS] == list("bad c")


def test_a_text_begins_as_it_is_meant_to_and_does_not_end():
    assert adopt_tokenizer(Beginning()).encode("bad c") == [8, *IDS]


def test_what_neither_reads_nor_holds_anything_is_refused():
    with pytest.raises(ModelError, match="the factory returned a object as its tokenizer"):
        adopt_tokenizer(object())
    with pytest.raises(ModelError, match="the factory returned a tuple as its tokenizer"):
        adopt_tokenizer(({}, 3))
