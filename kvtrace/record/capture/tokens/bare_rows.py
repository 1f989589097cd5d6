"""Rows that a layer on its own is given, where a whole model is given token ids."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kvtrace.record.capture.tokens.inputs import tokens_in


def rows_in(arguments: Mapping[str, object]) -> tuple[str, Tensor] | None:
    """The argument that holds them, and the rows, [sequences, new, width]; None: ids are given.

    Of several it is the first: what is attended to comes after.
    """
    if tokens_in(arguments) is not None:
        return None
    for name, one in arguments.items():
        if isinstance(one, Tensor) and one.dim() == 3 and one.is_floating_point():
            return name, one
    return None


def width_in(arguments: Mapping[str, object]) -> int:
    """Features of such rows: as many that come out are no logits; 0: ids are given."""
    found = rows_in(arguments)
    return 0 if found is None else found[1].shape[-1]
