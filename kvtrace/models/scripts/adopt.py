"""Any tokenizer that a user's factory returns, behind our seam.

Recognised by what it can do: transformers, `tokenizers`, tiktoken and SentencePiece objects,
character tables (`stoi`), and a pair of functions (encode, decode).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, cast

from kvtrace.errors import ModelError
from kvtrace.models.loaded import Tokenizer
from kvtrace.models.scripts.coders import (
    Encode,
    answered,
    decoder_of,
    encoder_of,
    table_among,
    table_of,
)
from kvtrace.models.tokens import HubTokenizer, WrappedTokenizer, guarded
from kvtrace.text import safe

_WORDS = re.compile(r"\w+|[^\w\s]")
_UNKNOWN = ("<unk>", "[UNK]", "<UNK>", "UNK", "unk", "<|unk|>")
_MEMBERS = ("name", "vocab_size", "bos", "eos", "encode", "decode")


class TiktokenEncoding(Protocol):
    """The part of a tiktoken encoding that is used."""

    name: str
    n_vocab: int
    eot_token: int

    def encode(self, text: str, *, disallowed_special: tuple[str, ...]) -> list[int]:
        """Ids of a text."""
        ...

    def decode_single_token_bytes(self, token: int) -> bytes:
        """Bytes of one id."""
        ...


class CallableTokenizer:
    """Two functions: text to ids, ids to text."""

    bos: int | None = None

    def __init__(
        self,
        name: str,
        encode: Callable[[str], Iterable[int]],
        decode: Callable[[int], str],
        vocab_size: int = 0,
        eos: frozenset[int] = frozenset(),
    ) -> None:
        self.name, self.vocab_size, self.eos = name, vocab_size, eos
        self._encode, self._decode = encode, decode

    def encode(self, text: str) -> list[int]:
        """Ids of a text, by the user's function."""
        made = guarded("your tokenizer, encoding", lambda: self._encode(text))
        if isinstance(made, str) or not isinstance(made, Iterable):
            raise ModelError(
                f"your tokenizer, encoding: it made {safe(repr(made), 40)} of "
                f"{safe(repr(text), 40)}; expected a list of token ids"
            )
        ids = list(made)
        # torch and numpy integers become plain ones; a batch of one is taken apart
        if len(ids) == 1 and not isinstance(ids[0], int) and getattr(ids[0], "ndim", 0) == 1:
            ids = list(cast("Iterable[int]", ids[0]))
        words = [each for each in ids if isinstance(each, str) and not each.isdecimal()]
        if words:
            raise ModelError(
                f"your tokenizer, encoding: it made {safe(repr(words[0]), 40)} of "
                f"{safe(repr(text), 40)}, which is no token id; return ids, not pieces of text"
            )
        return guarded("your tokenizer, encoding", lambda: [int(each) for each in ids])

    def decode(self, token: int) -> str:
        """Text of one id, by the user's function."""
        return guarded("your tokenizer, decoding", lambda: str(self._decode(token)))


def adopt_tokenizer(brought: object) -> Tokenizer:
    """Put a tokenizer behind the seam.

    Raises:
        ModelError: Nothing known about it helps; says what is possible.
    """
    if all(hasattr(brought, name) for name in _MEMBERS):
        return cast("Tokenizer", brought)
    if hasattr(brought, "convert_ids_to_tokens"):
        return WrappedTokenizer(cast("HubTokenizer", brought))
    if isinstance(brought, tuple) and len(brought) == 2 and all(map(callable, brought)):
        return _of_functions("encode and decode functions", *map(answered, brought))
    found = table_among([brought, getattr(brought, "stoi", None)])
    if found is None and isinstance(brought, tuple | list):
        found = table_among(brought)
    if found is not None:
        return _of_table(found)
    return _of_methods(brought)


def _of_methods(brought: object) -> Tokenizer:
    """Of an object, by what it can do.

    Raises:
        ModelError: Nothing of it helps.
    """
    if hasattr(brought, "decode_single_token_bytes"):
        return _of_tiktoken(cast("TiktokenEncoding", brought))
    kind, table = type(brought).__name__, table_of(brought)
    encode, decode = encoder_of(brought), decoder_of(brought)
    if table is not None and decode is None:
        return _of_table(table, encode)
    if encode is not None and decode is not None:
        return _of_functions(kind, encode, decode)
    raise ModelError(
        f"the factory returned a {kind} as its tokenizer; possible are objects with encode(text) "
        "and decode(ids), a pair of such functions, or a table of characters {'a': 0, …}"
    )


def _of_tiktoken(encoding: TiktokenEncoding) -> CallableTokenizer:
    return CallableTokenizer(
        f"tiktoken {encoding.name}",
        lambda text: encoding.encode(text, disallowed_special=()),
        lambda token: _text(encoding.decode_single_token_bytes(token)),
        encoding.n_vocab,
        _end_of(encoding),
    )


def _end_of(encoding: TiktokenEncoding) -> frozenset[int]:
    """The token that ends a text, where the encoding has one."""
    try:
        return frozenset({encoding.eot_token})
    except KeyError:
        return frozenset()


def _of_functions(
    name: str, encode: Callable[[str], object], decode: Callable[[Sequence[int]], object]
) -> CallableTokenizer:
    """`encode` may return ids or an object that has them; `decode` takes a list."""
    return CallableTokenizer(name, _ids_by(encode), lambda token: str(decode([token])))


def _ids_by(encode: Encode) -> Callable[[str], Iterable[int]]:
    def ids(text: str) -> Iterable[int]:
        coded = encode(text)
        return cast("Iterable[int]", getattr(coded, "ids", coded))

    return ids


def _of_table(table: Mapping[str, int], theirs: Encode | None = None) -> CallableTokenizer:
    """One id per character, as in many small models; per word where the entries are words.

    Args:
        table: Ids by text.
        theirs: What makes ids of a text, where they have that.
    """
    ids = dict(table)
    entries = {index: entry for entry, index in ids.items()}
    words = sum(len(entry) > 1 for entry in ids) > len(ids) / 2
    kind = "word" if words else "character"
    other = next((ids[one] for one in _UNKNOWN if one in ids), None)

    def encode(text: str) -> Iterable[int]:
        parts = _WORDS.findall(text) if words else list(text)
        if words and any(part not in ids for part in parts):
            parts = [part if part in ids else part.lower() for part in parts]
        unknown = next((part for part in parts if part not in ids), None)
        if unknown is not None and other is None:
            raise ModelError(
                f"the prompt's {kind} {unknown!r} is not among the {len(ids)} that the model "
                "knows; use others"
            )
        return [ids.get(part, cast("int", other)) for part in parts]

    def decode(token: int) -> str:
        entry = entries.get(token, f"<{token}>")
        return f" {entry}" if words and entry[:1].isalnum() else entry

    return CallableTokenizer(f"{kind}s", _ids_by(theirs or encode), decode, len(ids))


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in raw)
