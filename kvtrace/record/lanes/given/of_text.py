"""What a text is read beside, in a call of somebody's own: another text has another one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtrace.record.capture.tokens.inputs import is_source
from kvtrace.record.lanes.given.first_call import FirstCall

if TYPE_CHECKING:
    from kvtrace.record.lanes.passes.batch import Batch

_NOT = re.compile(r"past|cache|kv|present|mems|mask|bias|pos|freq|rope|cos|sin", re.IGNORECASE)


def of_text(
    call: FirstCall,
    arguments: Mapping[str, object],
    batch: Batch,
    dtype: torch.dtype | None,
) -> dict[str, object]:
    """Arguments that the first call's text had for itself, as the text of these paths had them.

    Those are an encoder's output or what it reads, and an image: whatever was taken from the first
    call as it is, and is neither a cache nor a table over positions.

    Args:
        call: The first one.
        arguments: What is to be given for whole paths.
        batch: The paths, and what their first step was given.
        dtype: Of floating tensors; None: as they are.
    """
    given = {name: one for name, one in call.arguments.items() if isinstance(one, Tensor)}
    rows = {name for name, one in given.items() if _are_rows(name, one, call)}
    lengths = {(given[name].shape[0], given[name].shape[1]) for name in rows}
    found: dict[str, object] = {}
    for name, first in given.items():
        own = batch.extra.get(name)
        hides = first.dim() > 1 and (first.shape[0], first.shape[-1]) in lengths
        hides = hides and not first.is_floating_point() and first.shape[-1] != call.new
        read = is_source(name, first) or name in rows or hides
        if arguments.get(name) is not first:
            continue
        if read and isinstance(own, Tensor) and own.dim() == first.dim():
            found[name] = _cast(own, dtype)
        elif own is None and name in rows and call.optional(name):
            found[name] = None  # this text has no image
    for name, one in batch.extra.items():
        other = name in call.parameters and call.arguments.get(name) is None
        if other and isinstance(one, Tensor) and _are_rows(name, one, call):
            found[name] = _cast(one, dtype)  # the first had none
    return found


def _cast(one: Tensor, dtype: torch.dtype | None) -> Tensor:
    return one if dtype is None or not one.is_floating_point() else one.to(dtype)


def _are_rows(name: str, one: Tensor, call: FirstCall) -> bool:
    """Whether an argument is rows that the text is read beside: no cache, and no table."""
    plain = not _NOT.search(name) and name not in call.written
    return one.is_floating_point() and one.dim() >= 3 and plain
