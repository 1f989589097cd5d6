"""Passes that are told to put the rows of two tokens in one place.

A step that was told to write over an older row loses it, as it may: a ring does. A pass over all
tokens at once loses it for the steps before, too, and is no reference from there on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.given.told import Told
from kvtrace.record.lanes.paths import Path


def written_over(forward: Forward, paths: Sequence[Path], told: Told) -> str:
    """Why a pass lost rows that it was told to write over; empty: it has all of them.

    Args:
        forward: What came out.
        paths: What was run.
        told: What the steps were given, and the pass with them.
    """
    for path in paths:
        found = told.twice(path)
        if found is None:
            continue
        name, first, again = found
        rows = [call.keys for call in forward.calls if call.keys.shape[2] > again]
        both = [(one[:, :, first], one[:, :, again]) for one in rows]
        # read by a table that names the place twice, or by one whose own place stays empty
        if any(torch.equal(one, other) or not other.any() for one, other in both):
            return f"`{name}` gives token {again} the place of token {first}, whose row is lost"
    return ""
