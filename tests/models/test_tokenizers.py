"""Tokenizers of a directory: hostile ones, packed ones, and none."""

import json

import pytest

from builders.folders import edit
from kvtrace.errors import ModelError
from kvtrace.models.hub import read_tokenizer
from kvtrace.models.patience import Patience
from kvtrace.models.tokens import WrappedTokenizer, guarded


def test_a_tokenizer_that_needs_code_is_refused(child, copy):
    (copy / "tokenizer.json").unlink()
    odd = {"AutoTokenizer": ["tokenization_odd.Odd", None]}
    edit(copy, "tokenizer_config.json", tokenizer_class="Odd", auto_map=odd)
    (copy / "tokenization_odd.py").write_text("raise SystemExit('it ran')\n")
    loaded = child.load(str(copy), prompt="Anna")
    assert (loaded.error, loaded.exit_code) == ("TrustError", 77)
    assert "tokenization_odd.py" in loaded.message


def test_a_hostile_tokenizer_gets_one_line(child, copy):
    path = copy / "tokenizer.json"
    whole = json.loads(path.read_text())
    pattern = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(whole | {"pre_tokenizer": pattern}))
    loaded = child.load(str(copy), prompt="Anna")
    assert loaded.error == "ModelError"
    assert loaded.message.startswith("tokenizer")
    path.write_bytes(b"\x00garbage")
    assert child.load(str(copy), prompt="Anna").message.startswith("tokenizer.json: not JSON")


PACKED = {
    b"\n\x0e\n\x05<unk>": "a SentencePiece vocabulary, which needs sentencepiece protobuf",
    b"aGVsbG8= 0\n": "a tiktoken vocabulary, which needs tiktoken",
}


@pytest.mark.parametrize("raw", PACKED)
def test_a_packed_vocabulary_names_the_packages_that_read_it(copy, raw, monkeypatch):
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (copy / "tokenizer.model").write_bytes(raw)
    monkeypatch.setattr(read_tokenizer, "_installed", lambda package: False)
    with pytest.raises(ModelError, match=f"tokenizer.model: {PACKED[raw]}"):
        read_tokenizer.read_tokenizer(copy, "", False, Patience())


def test_a_panic_in_a_tokenizer_is_caught():
    class PanicException(BaseException):
        pass

    def panic():
        raise PanicException("called `Option::unwrap()` on a `None` value")

    with pytest.raises(
        ModelError, match=r"tokenizer, test_tokenizers\.py:\d+: PanicException: called"
    ):
        guarded("tokenizer", panic)


def test_a_model_larger_than_its_tokenizer_can_say_is_checked(child, copy):
    edit(copy, vocab_size=512)
    loaded = child.load(str(copy), prompt="Anna, Tom and Ruth live near the river.")
    assert loaded.exit_code == 2
    assert "is outside the model's vocabulary of 512" in loaded.message


def test_an_id_that_only_the_model_knows_is_named_by_its_number(copy):
    class Packed:  # as those of SentencePiece
        bos_token_id = eos_token_id = None
        __len__ = [*range(7)].__len__

        def decode(self, ids, **asked):
            raise IndexError("piece id is out of range.")

    known = read_tokenizer.read_tokenizer(copy, "", False, Patience())
    assert (known.decode(5000), WrappedTokenizer(Packed()).decode(9)) == ("<id 5000>", "<id 9>")
    with pytest.raises(ModelError, match="piece id is out of range"):
        WrappedTokenizer(Packed()).decode(3)


def test_without_a_tokenizer_the_prompt_is_read_as_bytes(child, copy):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    loaded = child.load(str(copy), prompt="aé")
    assert loaded.prompt == (97, 0xC3, 0xA9)
    assert loaded.tokens == ("a", "<0xC3>", "<0xA9>")
    assert loaded.card["tokenizer"] == "UTF-8 bytes"
    assert "the prompt is read as bytes" in loaded.chosen
