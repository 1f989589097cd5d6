"""Whether a model, called twice over the same tokens without any cache, gives the same numbers.

Dropout that is left on, or noise, makes every lane another one: then nothing that differs tells of
a cache. Asked once lanes part.
"""

from __future__ import annotations

import torch

from kvtrace.record.capture.forward import Forward
from kvtrace.record.chance import own_chance
from kvtrace.record.lanes.passes.batch import Batch, CannotRecomputeError
from kvtrace.record.lanes.passes.recompute import Recomputer
from kvtrace.trace import NOT_REPEATABLE, Note

_SEED = 0x6B76
"""Any but the one that the first call happened to start from."""


def varies(
    again: Recomputer, batch: Batch, forward: Forward, dtype: str | None = None
) -> Note | None:
    """A note, where the same call comes out otherwise with other random numbers.

    Args:
        again: Computes the tokens again.
        batch: What was run.
        forward: What came out.
        dtype: In which it was run; None: as the model is.
    """
    try:
        with own_chance(again.model):
            torch.manual_seed(_SEED)
            other = again.run(batch, dtype=dtype)
    except CannotRecomputeError:
        return None
    known = {(call.module, call.call): call for call in other.calls}
    for one in forward.calls:
        there = known.get((one.module, one.call))
        if there is None or there.output.shape != one.output.shape:
            continue
        far = (one.output.detach().float() - there.output.detach().float()).abs().max()
        size = there.output.detach().float().abs().max().clamp(min=torch.finfo().tiny)
        # the same shapes: not even the last bits differ
        if float(far / size) > torch.finfo(torch.float32).eps * 16:
            why = "something draws random numbers"
            if again.model.training:
                why = "the model is in training mode, where dropout is on: call model.eval()"
            return Note(
                "note",
                f"{NOT_REPEATABLE} two calls over the same tokens, neither with a cache, differ "
                f"by {float(far / size):.1e} of the largest output of "
                f"{one.module or 'the model'}; {why}",
            )
    return None
