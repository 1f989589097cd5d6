"""Tokenizers at the seam: transformers' own, and plain bytes where a model brings none.

Foreign tokenizer code (Rust included) runs only inside `guarded`, so whatever it throws becomes
one message. Knows nothing of models.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar

from kvtrace.errors import KvtraceError, ModelError
from kvtrace.paths import OURS, line_of
from kvtrace.text import said_by

T = TypeVar("T")
_PYTHON = str(Path(traceback.__file__).parent)


class HubTokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    bos_token_id: int | None
    eos_token_id: int | list[int] | None

    def encode(self, text: str) -> list[int]:
        """Ids, special tokens added."""
        ...

    def decode(self, ids: list[int], clean_up_tokenization_spaces: bool = ...) -> str:
        """Text of ids."""
        ...

    def convert_ids_to_tokens(self, ids: int) -> str | bytes | None:
        """The vocabulary's own spelling of one id."""
        ...

    def __len__(self) -> int:
        """Tokens, added ones included."""
        ...


def guarded(what: str, call: Callable[[], T]) -> T:
    """Run foreign code; anything it raises becomes a ModelError.

    A panic inside a Rust extension is a BaseException, so `except Exception` would let it pass.

    Raises:
        ModelError: The code failed; says what was being done and the cause.
    """
    try:
        return call()
    except (KvtraceError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        cause = said_by(error)
        raise ModelError(f"{what}{_line_of(error)}: {cause}") from error


def _line_of(error: BaseException) -> str:
    """Where a person's own code raised it: `, tok.py:12`; empty: in a package."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((one for one in reversed(frames) if "<" not in one.filename), None)
    if place is None or "site-packages" in place.filename:
        return ""
    if place.filename.startswith((str(OURS), _PYTHON)):
        return ""
    return f", {line_of(place)}"


@lru_cache(1)
def _bytes_of_letters() -> dict[str, int]:
    """The letters by which byte-level BPE spells bytes (the table of GPT-2's encoder)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    spelled = {chr(byte): byte for byte in plain}
    return spelled | {chr(0x100 + place): byte for place, byte in enumerate(rest)}


def _raw_bytes(spelling: str) -> str:
    """`<0xE2><0x80>` for a byte-level spelling, empty when it is not one."""
    table = _bytes_of_letters()
    if not spelling or any(letter not in table for letter in spelling):
        return ""
    return "".join(f"<0x{table[letter]:02X}>" for letter in spelling)


class WrappedTokenizer:
    """A transformers tokenizer behind our seam."""

    def __init__(self, inner: HubTokenizer, eos: frozenset[int] = frozenset()) -> None:
        """Args: inner: the tokenizer; eos: further ids that end a text (generation config)."""
        self._inner = inner
        own = inner.eos_token_id
        ends = own if isinstance(own, list) else [] if own is None else [own]
        self.vocab_size = len(inner)
        self.bos = inner.bos_token_id
        self.eos = eos | frozenset(ends)
        self.name = f"{_kind(inner)}, {self.vocab_size} tokens"

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens added."""
        return guarded("tokenizer, encoding the prompt", lambda: list(self._inner.encode(text)))

    def decode(self, token: int) -> str:
        """Text of one token, its leading space kept; `<id 151700>` where it has none.

        Models have more embeddings than their tokenizer has tokens.
        """
        try:
            return guarded(f"tokenizer, decoding id {token}", lambda: self._decode(token))
        except ModelError:
            if token < self.vocab_size:
                raise
            return f"<id {token}>"

    def _decode(self, token: int) -> str:
        text = self._inner.decode([token], clean_up_tokenization_spaces=False)
        spelling = self._inner.convert_ids_to_tokens(token)
        if spelling is None and not text:
            return f"<id {token}>"
        spelling = spelling if isinstance(spelling, str) else ""
        if "\ufffd" in text:
            return _raw_bytes(spelling) or spelling or text
        # SentencePiece writes a leading space as ▁ and drops it when decoding a single token
        if spelling.startswith("▁") and not text.startswith(" "):
            return " " + text
        return text or spelling


class ByteTokenizer:
    """UTF-8 bytes as ids 0–255, for models that bring no tokenizer."""

    name = "UTF-8 bytes"
    vocab_size = 256
    bos: int | None = None

    def __init__(self, eos: frozenset[int] = frozenset()) -> None:
        """Args: eos: ids that end a text, in the model's own counting."""
        self.eos = eos

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return list(text.encode("utf-8"))

    def decode(self, token: int) -> str:
        """The character of an ASCII byte, else its number."""
        return chr(token) if 0 <= token < 0x80 else f"<0x{token:02X}>"


def _kind(inner: object) -> str:
    """The fast backend's model ("BPE", "Unigram", "WordPiece"), else the class name."""
    backend = getattr(inner, "backend_tokenizer", None)
    model = getattr(backend, "model", None)
    return type(model if model is not None else inner).__name__
