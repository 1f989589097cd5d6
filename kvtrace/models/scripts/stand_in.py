"""What reads the prompt where somebody's model brings no tokenizer."""

from __future__ import annotations

import re

from kvtrace.models.loaded import Tokenizer
from kvtrace.models.scripts.adopt import CallableTokenizer, adopt_tokenizer
from kvtrace.models.tokens import ByteTokenizer

_BYTES = 256
_NUMBERS = re.compile(r"\s*\d+([\s,]+\d+)*\s*")


def stand_in(text: str, vocab_size: int) -> tuple[Tokenizer, str]:
    """A tokenizer, and the sentence that says what it does.

    Args:
        text: The prompt; only a vocabulary too small for bytes is fitted to it.
        vocab_size: Rows of the model's embedding; 0 when unknown.
    """
    few = 0 < vocab_size < _BYTES
    if few and _NUMBERS.fullmatch(text):
        numbers = CallableTokenizer("token ids", _numbers, lambda token: f" {token}")
        return numbers, "it brings no tokenizer: the prompt is read as token ids"
    characters = sorted(set(text))
    if few and len(characters) <= vocab_size <= max(text.encode(errors="replace"), default=0):
        # a model of so few tokens is mostly one of characters, numbered as these are
        table = {character: index for index, character in enumerate(characters)}
        return adopt_tokenizer(table), (
            f"it brings no tokenizer, and knows {vocab_size} tokens, too few for bytes: the "
            'prompt\'s characters are numbered in their order (or give token ids, as in "3 1 4")'
        )
    return ByteTokenizer(), "it brings no tokenizer: the prompt is read as bytes"


def _numbers(text: str) -> list[int]:
    return [int(one) for one in re.findall(r"\d+", text)]
