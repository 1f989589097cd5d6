"""Which tokens an encoder read, for the rows that it made of them.

Known where the encoder was called on its own, as `generate` does, just before the text began.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtrace.analysis.phase import ENCODER, phase
from kvtrace.errors import MissingError
from kvtrace.trace import Step, Trace


def source_tokens(
    trace: Trace, number: int, written: int | None, count: int, sequence: int
) -> NDArray[np.int64] | None:
    """Token ids of an encoder's rows, [count]; None: not known, or not one a token.

    Args:
        trace: The trace.
        number: A step that attends to them.
        written: The step that made their keys and values; None: it is lost.
        count: How many rows there are.
        sequence: Row of the batch; after the encoder, each may have become several beams.
    """
    try:
        step = trace.step(number)
        encoder = None if written is None else _pass_before(trace, written)
    except MissingError:
        return None
    if encoder is None or encoder.new != count or step.num_sequences % encoder.num_sequences:
        return None
    beams = step.num_sequences // encoder.num_sequences
    return np.array(encoder.tokens[sequence // beams], np.int64)


def _pass_before(trace: Trace, number: int) -> Step | None:
    """The encoder's pass that a step is, or that came just before it.

    Raises:
        MissingError: It is lost.
    """
    step = trace.step(number)
    if phase(trace, step) != ENCODER and number:
        step = trace.step(number - 1)
    return step if phase(trace, step) == ENCODER else None
