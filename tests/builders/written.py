"""Any trace in memory, written to a file the way the recorder does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kvtrace.files import StepRows
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import Step, Tensor, Trace


def write_trace(path: Path, trace: Trace) -> Path:
    """Write all of it, and close."""
    with TraceWriter(path, trace.meta) as writer:
        for step in trace:
            writer.append(step, rows_of(trace, step))
            for lane in trace.meta.lanes:
                comparison = trace.compared(step.number, lane.name)
                if comparison is not None:
                    writer.compare(comparison)
        for lane, number in getattr(trace.source, "passes", {}):
            writer.keep_pass(lane, *pass_of(trace, lane, number))
        for note in trace.notes:
            writer.note(note)
        if trace.ending is not None:
            writer.end(trace.ending)
    return path


def rows_of(trace: Trace, step: Step) -> StepRows:
    """The raw rows of a step of a trace in memory."""
    source = trace.source
    queries, output, keys, values = {}, {}, {}, {}
    for group in step.sites:
        for site in group.sites:
            queries[site] = source.site_rows(step.number, site, Tensor.QUERIES, None)
            output[site] = source.site_rows(step.number, site, Tensor.OUTPUT, None)
    for group in step.caches:
        for layer in group.layers:
            for tensor, into in ((Tensor.KEYS, keys), (Tensor.VALUES, values)):
                into[layer] = np.stack(
                    [
                        source.cells(
                            layer,
                            tensor,
                            group.first_cell + sequence * group.rows,
                            group.rows,
                            None,
                        )
                        for sequence in range(len(group.attended))
                    ]
                )
    masks = {
        s: source.full_mask(step.number, s) for g in step.sites if g.mask.full for s in g.sites
    }
    biases = {s: source.bias(step.number, s) for g in step.sites if g.mask.bias for s in g.sites}
    return StepRows(queries, output, keys, values, masks, biases)


def pass_of(trace: Trace, lane: str, number: int) -> tuple[Step, StepRows]:
    """A pass of a trace in memory."""
    source = trace.source
    step = source.pass_step(lane, number)
    sites = [site for group in step.sites for site in group.sites]
    layers = [layer for group in step.caches for layer in group.layers]

    def rows(tensor, indices):
        return {index: source.pass_rows(lane, number, tensor, index, None) for index in indices}

    return step, StepRows(
        rows(Tensor.QUERIES, sites),
        rows(Tensor.OUTPUT, sites),
        rows(Tensor.KEYS, layers),
        rows(Tensor.VALUES, layers),
        {s: source.pass_mask(lane, number, s) for g in step.sites if g.mask.full for s in g.sites},
        {s: source.pass_bias(lane, number, s) for g in step.sites if g.mask.bias for s in g.sites},
    )
