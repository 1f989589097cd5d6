"""What is kept back of a step of a cache of the model's own that was like the one before."""

from __future__ import annotations

from collections.abc import Set

import torch

from kvtrace.record.cache.own.steady import SteadyStep
from kvtrace.record.capture.forward import Forward
from kvtrace.record.steps.masks import Compactor
from kvtrace.record.steps.steady import Parts


@torch.no_grad()
def steady_parts(
    forward: Forward, steady_step: SteadyStep, compactor: Compactor, dtypes: Set[torch.dtype]
) -> Parts | None:
    """Copies of its rows; None where its sites differ in more than their rows.

    Args:
        forward: It.
        steady_step: What its calls did.
        compactor: For its masks.
        dtypes: In which the rows of its sites are stored.
    """
    calls, rows = forward.calls, steady_step.rows
    seq = int(steady_step.step.cells.shape[1])
    queries, output = [call.queries for call in calls], [call.output for call in calls]
    masks = [compactor.compact(call, seq) for call in calls]
    alike = (
        all(mask is masks[0] for mask in masks)
        and all(one.shape == queries[0].shape for one in queries)
        and all(one.shape == output[0].shape for one in output)
        and {one.dtype for one in (*queries, *output)} == dtypes
        and len(dtypes) == 1
    )
    if not alike or queries[0].shape[2] != forward.new:
        return None
    each = queries[0].shape, output[0].shape, rows.shape[2:], rows.shape[2:]
    tensors = torch.cat(queries), torch.cat(output), rows[0].flatten(0, 1), rows[1].flatten(0, 1)
    return Parts(steady_step.sites, each, tensors, masks[0])
