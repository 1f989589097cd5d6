"""How many tokens and positions somebody's model knows, read off its tables."""

from __future__ import annotations

import re

from torch import nn

from kvtrace.configs import context_length, count

_POSITIONS = re.compile(
    r"(.*_)?(w?pe|pos|position|positions?|positional)(_?(emb|embed|embedding|embeddings|enc|encoding"
    r"|table|ids?))*(_table|_emb\w*)?"
)
_DISTANCES = re.compile(r"rel(ative)?_|_rel\b|bias|bucket|distance|offset")


def vocabulary_of(model: nn.Module) -> int:
    """Rows of the largest embedding that is none of positions; 0 when there is none."""
    told = count(getattr(model, "config", None), "vocab_size")
    if told:
        return told
    tables = {name: each for name, each in model.named_modules() if isinstance(each, nn.Embedding)}
    other = [name for name in tables if _of_positions(name) or _of_distances(name)]
    tokens = {name: one for name, one in tables.items() if name not in other}
    return max((table.num_embeddings for table in (tokens or tables).values()), default=0)


def _of_positions(path: str) -> bool:
    """Whether a table's name, or that of the module around it, speaks of positions."""
    return any(map(_POSITIONS.fullmatch, path.lower().split(".")[-2:]))


def _of_distances(path: str) -> bool:
    """Whether it speaks of how far positions are apart: no text is too long for that."""
    return any(map(_DISTANCES.search, path.lower().split(".")[-2:]))


def positions_of(model: nn.Module) -> int:
    """What a config says, or the rows of a learned table of positions; 0 when unknown."""
    told = context_length(getattr(model, "config", None)) or context_length(model)
    if told:
        return told
    for name, each in model.named_modules():
        if isinstance(each, nn.Embedding) and _of_positions(name) and not _of_distances(name):
            return int(each.num_embeddings)
    for held in vars(model).values():
        if isinstance(held, dict) and (told := context_length(held)):
            return told
    return 0
