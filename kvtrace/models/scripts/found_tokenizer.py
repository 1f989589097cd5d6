"""The tokenizer that a user's file has lying about, where its factory returned none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType

from torch import nn

from kvtrace.models.loaded import Tokenizer
from kvtrace.models.scripts.adopt import adopt_tokenizer
from kvtrace.models.scripts.vocabulary import vocabulary_of

_OBJECTS = re.compile(r"(\w+_)?(tokenizer|tok|enc|encoder|encoding|sp|bpe|tokeniser)", re.I)
_TABLES = re.compile(
    r"stoi|(char|ch|c|token|tok|word|w|str)(acter)?s?_?(to|2)_?(idx|ix|i|id|ids|index|int|token)s?"
    r"|vocab|vocabulary|(char|token)_?(ids|index|indices)",
    re.I,
)
_ENTRIES = re.compile(
    r"itos|vocab|vocabulary|(chars|characters|words)(_list)?|all_(chars|words|tokens)"
    r"|(id|idx|ix|i|index|int)s?_?(to|2)_?(char|ch|c|token|tok|word|w|str|s)s?",
    re.I,
)
_ENOUGH = 2


def find_tokenizer(module: ModuleType, model: object) -> tuple[Tokenizer, str] | None:
    """A tokenizer among the names of a file, or on the model, and where it is; None: none."""
    encode, decode = (getattr(module, name, None) for name in ("encode", "decode"))
    if callable(encode) and callable(decode):
        return adopt_tokenizer((encode, decode)), "the file's encode and decode"
    spaces = [("the file's ", vars(module)), ("the model's ", vars(model))]
    for said, space in spaces:
        for name, value in list(space.items()):
            if _OBJECTS.fullmatch(name) and _codes(value):
                return adopt_tokenizer(value), f"{said}{name}"
    for said, space in spaces:
        tables = [name for name, value in space.items() if _is_table(name, value)]
        tables.sort(key=lambda name: name.lower() != "stoi")
        if tables:
            return adopt_tokenizer(space[tables[0]]), f"{said}{tables[0]}"
    for said, space in spaces:
        for name, value in list(space.items()):
            table = _numbered(value, model) if _ENTRIES.fullmatch(name) else None
            if table:
                return adopt_tokenizer(table), f"{said}{name}"
    return None


def _numbered(value: object, model: object) -> dict[str, int] | None:
    """Entries by their numbers, a list or a table, as one of numbers by entries.

    None: it has another size than the model's vocabulary, so it numbers something else.
    """
    entries = dict(enumerate(value)) if isinstance(value, list | tuple) else value
    size = vocabulary_of(model) if isinstance(model, nn.Module) else 0
    if not isinstance(entries, Mapping) or not _ENOUGH <= len(entries) == size:
        return None
    pairs = list(entries.items())
    if not all(type(number) is int and isinstance(entry, str) for number, entry in pairs):
        return None
    return {entry: number for number, entry in pairs}


def _codes(value: object) -> bool:
    """Whether an object, not a class, encodes and decodes text."""
    if isinstance(value, type | ModuleType):
        return False
    return all(callable(getattr(value, name, None)) for name in ("encode", "decode"))


def _is_table(name: str, value: object) -> bool:
    return (
        _TABLES.fullmatch(name) is not None
        and isinstance(value, Mapping)
        and len(value) >= _ENOUGH
        and all(isinstance(key, str) for key in value)
        and all(isinstance(one, int) and not isinstance(one, bool) for one in value.values())
    )
