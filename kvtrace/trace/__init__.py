"""Floor 1: what was recorded, as plain immutable values. Needs numpy only; knows no files."""

from kvtrace.trace.cost import Cost, Flops
from kvtrace.trace.lane import LaneStep, LogitDiff
from kvtrace.trace.mask import Mask
from kvtrace.trace.meta import CacheLayer, Lane, Meta, ModelCard, Rank, Sampling, Site, Tensor
from kvtrace.trace.notes import (
    HANDED_BACK,
    HOOKS_CHANGED,
    INEXACT,
    NOT_RECOVERED,
    NOT_REPEATABLE,
    OTHER_AXIS,
    RECOVERED,
    ROUNDS_INSIDE,
    ROWS_LEFT_OUT,
    ROWS_UNKNOWN,
    SET_WITHIN,
    STOPPED,
    WEIGHTS_CHANGED,
    Damage,
    Ending,
    Note,
    rounded_by,
)
from kvtrace.trace.picks import Picks
from kvtrace.trace.reference import Reference
from kvtrace.trace.source import CACHED, OVERVIEW, WRITES, Source
from kvtrace.trace.step import (
    NO_TOKEN,
    CacheEvent,
    CacheStep,
    Packed,
    PoolRun,
    Run,
    SiteStep,
    Step,
    TopLogits,
    stands_for_none,
)
from kvtrace.trace.trace import NO_ATTENTION, Trace
from kvtrace.trace.view import CacheView
from kvtrace.trace.weights import Weights

__all__ = [
    "CACHED",
    "HANDED_BACK",
    "HOOKS_CHANGED",
    "INEXACT",
    "NOT_RECOVERED",
    "NOT_REPEATABLE",
    "NO_ATTENTION",
    "NO_TOKEN",
    "OTHER_AXIS",
    "OVERVIEW",
    "RECOVERED",
    "ROUNDS_INSIDE",
    "ROWS_LEFT_OUT",
    "ROWS_UNKNOWN",
    "SET_WITHIN",
    "STOPPED",
    "WEIGHTS_CHANGED",
    "WRITES",
    "CacheEvent",
    "CacheLayer",
    "CacheStep",
    "CacheView",
    "Cost",
    "Damage",
    "Ending",
    "Flops",
    "Lane",
    "LaneStep",
    "LogitDiff",
    "Mask",
    "Meta",
    "ModelCard",
    "Note",
    "Packed",
    "Picks",
    "PoolRun",
    "Rank",
    "Reference",
    "Run",
    "Sampling",
    "Site",
    "SiteStep",
    "Source",
    "Step",
    "Tensor",
    "TopLogits",
    "Trace",
    "Weights",
    "rounded_by",
    "stands_for_none",
]
