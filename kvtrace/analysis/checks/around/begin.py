"""What is special about the place where a divergence begins: the length, and what equals it."""

from __future__ import annotations

from kvtrace.analysis.phase import phase
from kvtrace.trace import Step, Trace


def begins(trace: Trace, number: int, layer: int) -> str:
    """A clause about the first wrong step; empty when it says nothing more than the step does.

    Args:
        trace: All earlier steps of it were found equal, or could not be told from equal.
        number: The first step that is not.
        layer: The first site that is not.
    """
    step = trace.step(number)
    right = _decoded_before(trace, step)
    length = _length(step)
    if right < 1 or length < 2 or length == step.new:  # a text that begins has no steps before
        return ""
    what = _equals(trace, layer, length - step.new, length)
    steps = "the decode step before it is" if right == 1 else f"the {right} decode steps before are"
    return f"it begins when the sequence has {length} tokens{what}; {steps} right"


def _decoded_before(trace: Trace, step: Step) -> int:
    """Decode steps among the ancestors of a step, as far as they are in the trace."""
    count, known = 0, set(trace.numbers)
    while step.parent is not None and step.parent in known and step.parent < step.number:
        step = trace.step(step.parent)
        count += phase(trace, step) == "decode"
    return count


def _length(step: Step) -> int:
    """Tokens of the longest sequence after a step."""
    return max((row[-1] + 1 for row in step.positions if row), default=0)


def _equals(trace: Trace, layer: int, before: int, length: int) -> str:
    """Which size of the model lies between the two lengths, in words."""
    site, store, card = trace.site(layer), trace.cache_layer(layer), trace.meta.model
    windows = {one.window for one in trace.meta.sites if one.window}
    windows |= {one.window for one in trace.meta.cache_layers if one.window}
    known = (
        ("the window", site.window or store.window),
        ("the buffer", store.capacity),
        ("the context of the model", card.context_length or None),
        *(("the window of other layers", size) for size in sorted(windows)),
    )
    for name, size in known:
        if size is not None and before <= size < length:
            return f", more than {name} of {size} for the first time"
        if size is not None and length == size:
            return f", which is {name} of {size}"
    return ""
