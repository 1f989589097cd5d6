"""The kind of attention in a module, and the number of its layer, as its path in the model says."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from functools import lru_cache

# a cross-decoder and cross-layer attention share the rows of a text with other layers of it
_CROSS = re.compile(
    r"cross(?!_?decoder|_?layer_?att)|encoder_attn|encdec|enc_dec|encoder_?decoder_?att",
    re.IGNORECASE,
)
_SIDE = re.compile(
    r"(?:\w+_)?(enc|dec)(?:oder)?s?(?:_?(?:layers?|blocks?|stack|net|transformer))?", re.IGNORECASE
)
_SENSES = re.compile(
    r"vision|visual|image|audio|speech|(?:^|[._])(?:vit|clip|siglip|dino\w*)(?:[._]|$)",
    re.IGNORECASE,
)


@lru_cache(maxsize=4096)
def kind_of(path: str, *, two_sided: bool) -> str:
    """The kind of attention in a module.

    Args:
        path: Of the module.
        two_sided: The model has a decoder; in one without, what is called encoder may decode.
    """
    if _CROSS.search(path):
        return "cross"
    # a decoder may call its layers an encoder: decoder.bert.encoder.layer.0
    side = _side(path) if two_sided else None
    if side is not None and side[1] == "dec":
        # what is around it is around the encoder as well: speecht5.decoder.layers.0
        path = path[side[0] :]
    encodes = side is not None and side[1] == "enc"
    return "encoder" if encodes or _SENSES.search(path) else "self"


def linear(unseen: Iterable[str], states: Container[int]) -> tuple[tuple[str, ...], str]:
    """Of modules that were not seen to attend, those that attend without rows.

    Args:
        unseen: Sentences, each beginning with the path of a module.
        states: Layers of the cache that hold memory of constant size, and no rows.

    Returns:
        The other sentences, and one of these; empty: there are none.
    """
    others: list[str] = []
    found: list[str] = []
    for sentence in unseen:
        path = re.split(r"[: ]", sentence, maxsplit=1)[0]
        number = re.search(r"(?:^|\.)(\d+)\.", path)
        holds = number is not None and int(number[1]) in states
        (found if holds else others).append(path if holds else sentence)
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    says = "linear attention: memory of constant size, and no rows to show"
    return tuple(others), f"{found[0]}{more}: {says}" if found else ""


def is_two_sided(paths: Iterable[str], name: str = "") -> bool:
    """Whether a model with these modules has a decoder; BERT calls a mere projection that.

    Args:
        paths: Of its modules.
        name: Of its class: a decoder may be called alone.
    """
    return name.endswith("Decoder") or "dec" in {side[1] for path in paths if (side := _side(path))}


def _side(path: str) -> tuple[int, str] | None:
    """The side that a module is on by the outermost name around it, and where that name begins."""
    start = 0
    for part in path.split(".")[:-1]:
        side = _SIDE.fullmatch(part)
        if side is not None:
            return start, side[1].lower()
        start += len(part) + 1
    return None


@lru_cache(maxsize=4096)
def number_in(path: str, otherwise: int) -> int:
    """The number of a layer: the first one in its module's path, if there is one."""
    found = re.search(r"(?:^|[._])(\d+)(?:[._]|$)", path)
    return int(found.group(1)) if found else otherwise
