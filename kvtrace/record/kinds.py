"""Self, cross or encoder attention, as the place of a module in its model says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_CROSS = re.compile(r"cross|encoder_attn|encdec|enc_dec", re.IGNORECASE)
_SENSES = re.compile(r"vision|visual|image|audio|speech", re.IGNORECASE)


@lru_cache(maxsize=4096)
def kind_of(path: str, *, two_sided: bool) -> str:
    """The kind of attention in a module.

    Args:
        path: Of the module.
        two_sided: The model has a decoder; in one without, what is called encoder may decode.
    """
    if _CROSS.search(path):
        return "cross"
    encodes = two_sided and "encoder" in path.split(".")[:-1]
    return "encoder" if encodes or _SENSES.search(path) else "self"


def is_two_sided(paths: Iterable[str]) -> bool:
    """Whether a model with these modules has a decoder; BERT calls a mere projection that."""
    return any("decoder" in path.split(".")[:-1] for path in paths)
