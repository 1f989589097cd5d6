"""Which methods of somebody's tokenizer make ids of text, and text of ids, whatever their names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral

_ENCODE = (
    *("encode", "encode_as_ids", "EncodeAsIds", "text_to_ids", "text_to_sequence"),
    *("convert_text_to_ids", "tokenize", "__call__"),
)
_DECODE = (
    *("decode", "decode_ids", "DecodeIds", "ids_to_text", "sequence_to_text"),
    *("convert_ids_to_text", "detokenize", "untokenize"),
)
_SPELL = ("id_to_piece", "IdToPiece", "id_to_token")
_SPACE = "\u2581"
"""What SentencePiece writes for a leading space, which decoding a single token drops."""

_TABLES = ("get_stoi", "get_vocab")
_TABLE = re.compile(
    r"stoi|(char|ch|c|token|tok|word|w|str|piece)(acter)?s?_?(to|2)_?(idx|ix|i|id|ids|index|int)s?"
    r"|vocab(ulary)?|(char|token|word)_?(ids|index|indices)",
    re.IGNORECASE,
)

Encode = Callable[[str], object]
Decode = Callable[[Sequence[int]], object]


def encoder_of(brought: object) -> Encode | None:
    """What makes ids of a text, given all that it asks for besides."""
    found = _method(brought, _ENCODE)
    return None if found is None else answered(found)


def decoder_of(brought: object) -> Decode | None:
    """What makes text of a list of ids, its leading space kept."""
    found, spell = _method(brought, _DECODE), _method(brought, _SPELL)
    if found is None:
        return None
    decode = answered(found)

    def spaced(ids: Sequence[int]) -> str:
        text, spelled = str(decode(ids)), str(spell(ids[0])) if spell and ids else ""
        return f" {text}" if spelled.startswith(_SPACE) and text[:1] != " " else text

    return spaced


def table_of(brought: object) -> Mapping[str, int] | None:
    """A table of ids by text that an object holds, or hands out."""
    for name in _TABLES:
        method = getattr(brought, name, None)
        if callable(method) and not _needed(method):
            return _if_table(method())
    held = ((name, _if_table(one)) for name, one in getattr(brought, "__dict__", {}).items())
    return next((one for name, one in held if one is not None and _TABLE.fullmatch(name)), None)


def table_among(parts: Iterable[object]) -> Mapping[str, int] | None:
    """The first of these that is a table of ids by text, or its inverse."""
    return next((one for one in map(_if_table, parts) if one is not None), None)


def answered(function: Callable[..., object]) -> Callable[[object], object]:
    """A function of one argument: whatever else it can't do without is answered.

    Beginnings of a text are asked for, ends are not, and no token that looks special is refused.
    """
    needed = _needed(function)[1:]
    return partial(function, **{one: _answer(one) for one in needed}) if needed else function


def _answer(name: str) -> object:
    if "special" in name:
        return () if name.startswith("dis") else "all"
    return bool(re.search(r"bos|start|begin", name))


def _needed(function: Callable[..., object]) -> list[str]:
    """Names of what it must be given; empty where Python can't say."""
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        return []  # of compiled code, `self` may be among them
    try:
        declared = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [one.name for one in declared if one.kind not in kinds and one.default is one.empty]


def _method(brought: object, names: Iterable[str]) -> Callable[..., object] | None:
    if isinstance(brought, type):
        return None
    found = (getattr(brought, name, None) for name in names)
    return next((one for one in found if callable(one)), None)


def _if_table(value: object) -> Mapping[str, int] | None:
    """Ids by text, if it holds those, or texts by id."""
    if not isinstance(value, Mapping) or not value:
        return None
    pairs = list(value.items())
    if all(isinstance(key, Integral) and isinstance(one, str) for key, one in pairs):
        pairs = [(one, key) for key, one in pairs]
    if not all(isinstance(key, str) and isinstance(one, Integral) for key, one in pairs):
        return None
    return {key: int(one) for key, one in pairs}
