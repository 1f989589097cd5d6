"""What a step cost with the cache, and what the same tokens cost without: FLOPs, bytes, time.

FLOPs come from recorded shapes (multiply-add = 2, the full new × seq rectangle). Bytes count the
weights once, and K,V rows read and written; activations are left out on both sides.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from msgspec import Struct

from kvtrace import units
from kvtrace.errors import TraceError
from kvtrace.trace import Flops, Step, Trace

EXTRAPOLATED = "are extrapolated from single steps"
"""What the recorder says of FLOPs whose growth with the text it could not learn for sure."""


_ABOUT = 1.05
"""Weights of both lanes up to this ratio are called about the same."""

_ENOUGH = 4
"""Steps that make a median."""

_SLOW = 2.0
"""A step that took so many times the usual was held up by something else."""


class Logits(StrEnum):
    """Which rows of logits are counted."""

    COMPUTED = "as computed"
    LAST = "last row"
    ALL = "all rows"


PARTS = ("qkv", "scores", "mix", "output", "mlp", "other")
PART_TITLES = {
    "qkv": "Q, K, V projections",
    "scores": "scores q·kᵀ",
    "mix": "weights · v",
    "output": "output projection",
    "mlp": "MLP",
    "other": "other products",
    "head": "logits",
}


class Part(Struct, frozen=True):
    """FLOPs of one part of the model, in both lanes."""

    name: str
    cached: int
    recomputed: int

    @property
    def title(self) -> str:
        """What it is called on the screen."""
        return PART_TITLES[self.name]


class Side(Struct, frozen=True):
    """One lane of a step.

    Attributes:
        flops: In total.
        bytes_read, bytes_written: Weights, K,V rows and recurrent states, which are whole anew
            after every step.
        elapsed_ns: Wall time; None where it was not measured.
    """

    flops: int
    bytes_read: int
    bytes_written: int
    elapsed_ns: int | None

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: FLOPs per byte moved (Williams et al., 2009, "Roofline")."""
        return self.flops / self.moved if self.moved else 0.0


class StepCost(Struct, frozen=True):
    """A step in both lanes.

    Attributes:
        parts: FLOPs by part, the logits last.
        cached, recomputed: The two sides.
        weight_bytes, uncached_weight_bytes: Parameters that either reads, each once; None where
            the trace does not say it of a forward without a cache, which reads no fewer.
        cache_bytes: Memory the cache holds after the step.
        logits: The convention used for the last part.
        estimated: FLOPs without the cache are extrapolated, as the trace says of some modules.
        usual_ns: Median wall time of the run's steps with as many tokens; None: too few are timed.
        blind: No attention was seen in the run, so that nobody knows what a step goes on from.
    """

    parts: tuple[Part, ...]
    cached: Side
    recomputed: Side
    weight_bytes: int
    uncached_weight_bytes: int | None
    cache_bytes: int
    logits: Logits
    estimated: bool = False
    usual_ns: int | None = None
    blind: bool = False

    @property
    def flops_ratio(self) -> float | None:
        """How many times more FLOPs without the cache; None if nothing was counted."""
        return self.recomputed.flops / self.cached.flops if self.cached.flops else None

    @property
    def time_ratio(self) -> float | None:
        """How many times longer without the cache; None unless both were measured."""
        mine, theirs = self.cached.elapsed_ns, self.recomputed.elapsed_ns
        return theirs / mine if mine and theirs else None


def head_flops(flops: Flops, logits: Logits) -> int:
    """FLOPs of the logits by a convention."""
    return {
        Logits.COMPUTED: flops.head,
        Logits.LAST: flops.head_last,
        Logits.ALL: flops.head_all,
    }[logits]


def step_cost(trace: Trace, number: int, logits: Logits = Logits.COMPUTED) -> StepCost:
    """What a step cost.

    Raises:
        MissingError: There is no such step.
    """
    step = trace.step(number)
    cost = step.cost
    parts = [
        Part(name, getattr(cost.cached, name), getattr(cost.recomputed, name)) for name in PARTS
    ]
    head = Part("head", head_flops(cost.cached, logits), head_flops(cost.recomputed, logits))
    states = sum(layer.state_bytes for layer in trace.meta.cache_layers)
    cached = Side(
        cost.cached.body + head.cached,
        cost.weight_bytes + cost.cache_read_bytes + (states if step.parent is not None else 0),
        cost.cache_written_bytes + states,
        step.elapsed_ns or None,
    )
    recomputed = Side(
        cost.recomputed.body + head.recomputed,
        cost.uncached_weight_bytes or cost.weight_bytes,
        0,
        lane_elapsed_ns(trace, number),
    )
    weights = cost.weight_bytes, cost.uncached_weight_bytes or None
    sides = (*parts, head), cached, recomputed
    estimated, usual_ns = extrapolates(trace), _usual_ns(trace, step)
    return StepCost(
        *sides, *weights, cost.cache_bytes, logits, estimated, usual_ns, blind=not trace.meta.sites
    )


def _usual_ns(trace: Trace, step: Step) -> int | None:
    """What a step like this one usually takes: one measurement may be of something else."""
    table = trace.overview
    alike = (table["new"] == step.new) & (table["sequences"] == step.num_sequences)
    times = table["elapsed_ns"][alike & (table["elapsed_ns"] > 0)]
    return int(np.median(times)) if times.size >= _ENOUGH else None


def extrapolates(trace: Trace) -> bool:
    """Whether FLOPs of a longer forward are an estimate, as the recorder said."""
    return any(EXTRAPOLATED in sentence for sentence in trace.meta.not_recorded)


def lane_elapsed_ns(trace: Trace, number: int) -> int | None:
    """Wall time of the recomputed lane's forward for a step; None: none, or it is damaged."""
    try:
        compared = trace.compared(number)
    except TraceError:
        return None  # told where the lanes are compared; what the step did is not damaged
    return None if compared is None else compared.elapsed_ns


def why(cost: StepCost) -> str:
    """Why the time saved is not the FLOPs saved, in one sentence made of this step's numbers."""
    ratio = cost.flops_ratio
    if ratio is None:
        return "FLOPs were not counted for this step."
    if cost.blind:
        return (
            "No attention was seen: what a step goes on from is not known, so recomputed counts "
            "its own tokens, as cached does."
        )
    if cost.recomputed.flops <= cost.cached.flops:
        if cost.cache_bytes:
            return f"Nothing is saved yet: both compute every row once.{_set_up(cost)}"
        return "Nothing is saved: no row is kept, so every step computes all of them again."
    fewer = f"{units.ratio(cost.recomputed.flops, cost.cached.flops)} fewer FLOPs"
    time = cost.time_ratio
    if time is None:
        measured = f"{fewer} (time without the cache was not measured)"
    elif "1.0" in (f"{time:.1f}", f"{1 / time:.1f}"):
        measured = f"{fewer}, in about the same time"
    elif time > 1:
        measured = f"{fewer}, {time:.1f}× less time"
    else:
        measured = f"{fewer}, yet {1 / time:.1f}× more time"
    taken, usual = cost.cached.elapsed_ns, cost.usual_ns
    if time is not None and taken and usual and taken > _SLOW * usual:
        measured += (
            f" (it took {units.ratio(taken, usual)} what such a step of this run usually does)"
        )
    read = cost.cached.bytes_read - cost.weight_bytes
    mine, theirs = _intensity(cost.cached), _intensity(cost.recomputed)
    return (
        f"{measured}: {_weights(cost)}, the cached step reads "
        f"{units.byte_size(read)} of its cache besides and does {mine} FLOP per byte instead of "
        f"{theirs}, so {_bound(cost)}."
    )


def _set_up(cost: StepCost) -> str:
    """That a first pass takes longer, where the same work took far longer in the cached lane."""
    time = cost.time_ratio
    if time is None or time * _SLOW > 1:
        return ""
    return (
        f" That it took {1 / time:.1f}× the time is not the cache's doing: a program's first pass "
        "also sets up what later ones use."
    )


def _weights(cost: StepCost) -> str:
    """Which weights the two lanes read; of several tokens' experts and rows, the most it can be."""
    mine, theirs = cost.weight_bytes, cost.uncached_weight_bytes
    told = units.byte_size(mine)
    if theirs is None:
        return f"both read at least {told} of weights once"
    if units.byte_size(theirs) == told:
        return f"both read the same {told} of weights once"
    if theirs <= _ABOUT * mine:
        return f"both read about {told} of weights once"
    return f"{told} of weights are read instead of up to {units.byte_size(theirs)}"


def _intensity(side: Side) -> str:
    value = side.intensity
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _bound(cost: StepCost) -> str:
    """What the numbers say holds the cached step back."""
    time, flops = cost.time_ratio, cost.flops_ratio
    if time is not None and flops is not None and time > 0.8 * flops:
        return "here arithmetic, not memory, sets the pace"
    if cost.cached.intensity < 10:
        return "it waits for memory and fixed overheads, not for arithmetic"
    return "fixed overheads weigh more than arithmetic"
