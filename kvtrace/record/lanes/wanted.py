"""Which lanes a recording computes, and how far each may stand from the cached one."""

from __future__ import annotations

from msgspec import Struct

from kvtrace.record.lanes.compared.tolerance import higher, tolerance
from kvtrace.record.lanes.passes.recompute import Recomputer
from kvtrace.trace import Lane, Meta

RECOMPUTED, REFEREE = "recomputed", "referee"


class LaneOptions(Struct, frozen=True):
    """Which lanes are computed.

    Attributes:
        mode: "once", "each" or "off".
        referee: Compute the referee too, in one pass at the end.
        keep_rows: Keep every pass, however large.
    """

    mode: str = "once"
    referee: bool = False
    keep_rows: bool = False


def wanted_lanes(options: LaneOptions, meta: Meta) -> list[tuple[str, str, str | None]]:
    """(name, dtype, dtype of the pass) of each lane that is computed at the end."""
    wanted: list[tuple[str, str, str | None]] = []
    if options.mode == "once":
        wanted.append((RECOMPUTED, meta.model.dtype, None))
    if options.referee and options.mode != "off":
        dtype = higher(meta.model.dtype)
        wanted.append((REFEREE, dtype, dtype))
    return wanted


def lane_of(meta: Meta, again: Recomputer, name: str, mode: str, dtype: str) -> Lane:
    """What the trace says of a lane.

    Args:
        meta: Of the cached one.
        again: How it is computed.
        name: Its name.
        mode: When it is computed.
        dtype: Of its rows.
    """
    return Lane(name, mode, dtype, *tolerance_of(meta, again), again.reference or "bare")


def tolerance_of(meta: Meta, again: Recomputer) -> tuple[float, str]:
    """How far a lane may stand from the cached one, and why."""
    lowest = _lowest(meta, "" if again.autocast is None else again.autocast.name)
    if lowest == "float32":
        lowest = meta.model.products or lowest
    return tolerance(lowest, max(1, len(meta.sites)))


def _lowest(meta: Meta, autocast: str) -> str:
    """The dtype with the fewest digits: autocast multiplies in a lower one than the weights'.

    Of each call as it was first met: one that is less exact later on is what is to be found.
    """
    first: dict[tuple[str, int, str], str] = {}
    for site in meta.sites:
        first.setdefault((site.module, site.call, site.kind), site.dtype)
    found = [meta.model.dtype, autocast, *first.values()]
    order = ["bfloat16", "float16", "float32", "float64"]
    known = [one for one in found if one in order]
    return min(known, key=order.index) if known else meta.model.dtype
