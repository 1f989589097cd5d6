"""An output that a smaller type explains: somewhere on the way its numbers were rounded.

Tried forwards: round what goes in, the scores or the weights to a smaller type, mix, and see
whether the output of the cached lane comes out. Rounding is the same for everybody, so a right
guess fits far better than the difference is large.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

Wide = NDArray[np.float64]

_FITS = 0.2
"""What may be left of the difference; more is no explanation."""

_WORDS = {
    "inputs": "q, k and v were rounded to {} inside attention",
    "scores": "the softmax ran in {}",
    "weights": "the weights were rounded to {}",
    "all": "attention ran in {}",
}


class Mixed(Struct, frozen=True):
    """One query of some heads, rows in one order.

    Attributes:
        queries: [heads, dim].
        keys: [heads, rows, dim].
        values: [heads, rows, dim].
        logits: Right logarithm of the weights, up to a constant of each head, [heads, rows].
        scale: Of q·k.
        output: What came out, [heads, dim].
        right: What should, [heads, dim].
    """

    queries: Wide
    keys: Wide
    values: Wide
    logits: Wide
    scale: float
    output: Wide
    right: Wide


def ran_in(one: Mixed) -> str | None:
    """In words, what was rounded to which type; None where that explains nothing."""
    far = float(np.abs(one.output - one.right).max())
    tried = [(float(np.abs(made - one.output).max()), said) for said, made in _guesses(one)]
    misfit, said = min(tried)
    return said if misfit < _FITS * far else None


def _guesses(one: Mixed) -> Iterator[tuple[str, Wide]]:
    """Outputs, each with what was rounded for it."""
    for name in ("float16", "bfloat16"):
        for what, words in _WORDS.items():
            inputs = what in ("inputs", "all")
            scores, weights = what in ("scores", "all"), what != "inputs"
            yield words.format(name), _mixed(one, name, (inputs, scores, weights))
    yield from _quantised(one)


def _quantised(one: Mixed) -> Iterator[tuple[str, Wide]]:
    """Outputs where keys, or more, were quantised to eight bits for the product, row by row."""
    for queries, values, words in (
        (False, False, "k was"),
        (True, False, "q and k were"),
        (False, True, "k and v were"),
    ):
        narrow = replace(
            one,
            queries=_eight_bits(one.queries) if queries else one.queries,
            keys=_eight_bits(one.keys),
            values=_eight_bits(one.values) if values else one.values,
        )
        change = _product(narrow) - _product(one)
        share = np.exp(one.logits + change - one.logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        made = np.einsum("hr,hrd->hd", share, narrow.values)
        yield f"{words} quantised to 8 bits inside attention", made


def _product(one: Mixed) -> Wide:
    return np.asarray(np.einsum("hd,hrd->hr", one.queries, one.keys) * one.scale, np.float64)


def _eight_bits(rows: Wide) -> Wide:
    """Each row on 255 levels that reach from minus its largest number to it."""
    scale = np.maximum(np.abs(rows).max(axis=-1, keepdims=True), 1e-30) / 127
    return np.asarray(np.rint(rows / scale) * scale, np.float64)


def _mixed(one: Mixed, name: str, rounded: tuple[bool, bool, bool]) -> Wide:
    """What comes out if inputs, scores or weights are rounded."""
    inputs, scores, weights = rounded
    logits, values = one.logits, one.values
    if inputs:
        queries, keys = to_type(one.queries, name), to_type(one.keys, name)
        change = np.einsum("hd,hrd->hr", queries, keys)
        change -= np.einsum("hd,hrd->hr", one.queries, one.keys)
        logits = logits + change * one.scale
        values = to_type(values, name)
    if scores:
        # a constant of each head is lost with the logarithm: the scores themselves are rounded
        raw = np.einsum("hd,hrd->hr", one.queries, one.keys) * one.scale
        logits = logits + to_type(raw, name) - raw
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    if weights:
        share = to_type(share, name)
    made = np.einsum("hr,hrd->hd", share, values)
    return to_type(made, name) if inputs and weights else np.asarray(made, np.float64)


def to_type(rows: Wide, name: str) -> Wide:
    """Rounded to float16 or bfloat16, to the nearest even."""
    narrow = rows.astype(np.float32)
    if name == "float16":
        with np.errstate(over="ignore"):
            return narrow.astype(np.float16).astype(np.float64)
    bits = np.ascontiguousarray(narrow).view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(
        0xFFFF0000
    )
    return bits.view(np.float32).astype(np.float64)
