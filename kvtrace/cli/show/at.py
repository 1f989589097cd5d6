"""What is at one place of a trace: numbers, statistics, where the head looks, both lanes."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from kvtrace.analysis.heads.attention import Attention, attention
from kvtrace.analysis.heads.grid import Measure, grid
from kvtrace.analysis.heads.statistics import Statistics, statistics
from kvtrace.analysis.heads.tensors import head_rows, tensor_head
from kvtrace.analysis.lanes.compare import Comparison, compare
from kvtrace.analysis.selfcheck import SelfCheck, self_check
from kvtrace.cli.show.pick import Place, tensor_of
from kvtrace.cli.show.plain import Plain, plain
from kvtrace.errors import MissingError
from kvtrace.trace import CACHED, Trace, stands_for_none
from kvtrace.trace.dtypes import Floats


class Told(Struct, frozen=True):
    """One tensor of one head.

    Attributes:
        name: Of the tensor.
        head: Of that tensor: the kv head for K and V.
        values: [rows, dim]; weights are [new, seq]. None: not recorded in that lane.
        statistics: Of the values.
        lanes: Name of each other lane to the comparison with it; none for weights.
    """

    name: str
    head: int
    values: Floats | None
    statistics: Statistics | None
    lanes: dict[str, Comparison]


class At(Struct, frozen=True):
    """Everything at one place.

    Attributes:
        place: Where.
        tensors: Those asked for.
        looks: Where the head looks; None when weights were not asked for or can't be derived.
        check: Whether the recorded rows explain the recorded output; None: not recorded.
    """

    place: Place
    tensors: tuple[Told, ...]
    looks: Attention | None
    check: SelfCheck | None


def at(trace: Trace, place: Place) -> At:
    """Look there.

    Raises:
        MissingError: The site did not attend in this step.
        TraceError: The rows are damaged.
    """
    step, layer, head, sequence = place.step, place.layer, place.head, place.sequence
    trace.site_step(step, layer)
    looks = None
    if "weights" in place.tensors:
        try:
            looks = attention(trace, step, layer, head, sequence)
        except MissingError:
            looks = None
    told = tuple(_told(trace, place, name) for name in place.tensors)
    return At(place, told, looks, self_check(trace, step, layer, head, sequence))


def _told(trace: Trace, place: Place, name: str) -> Told:
    values = values_at(trace, place, name)
    numbers = None if values is None else statistics(values)
    if name == "weights":
        return Told(name, place.head, values, numbers, {})
    tensor = tensor_of(name)
    lanes = {}
    for lane in trace.meta.lanes:
        found = compare(
            trace, place.step, place.layer, tensor, place.head, place.sequence, lane.name
        )
        if found is not None:
            lanes[lane.name] = found
    head = tensor_head(trace.site(place.layer), tensor, place.head)
    return Told(name, head, values, numbers, lanes)


def values_at(trace: Trace, place: Place, name: str) -> Floats | None:
    """Rows of one tensor, [rows, dim]; weights are [new, seq]. None: not recorded in that lane.

    Raises:
        TraceError: The rows are damaged.
    """
    step, layer, head, sequence = place.step, place.layer, place.head, place.sequence
    if name != "weights":
        return head_rows(trace, step, layer, tensor_of(name), head, sequence, place.lane)
    if place.lane != CACHED:
        return None
    try:
        return np.asarray(trace.weights(step, layer, head, sequence).weights[0])
    except MissingError:
        return None


def facts(trace: Trace, found: At, *, numbers: bool) -> Plain:
    """As plain values for JSON; with `numbers`, every element."""
    measures = {
        measure.name.lower(): plain(grid(trace, found.place.step, measure, found.place.sequence))
        for measure in Measure
    }
    return {
        "place": plain(found.place),
        "tensors": {told.name: _tensor(told, numbers=numbers) for told in found.tensors},
        "attention": _looks(found.looks),
        "self_check": _check(found.check),
        "grid": measures,
    }


def _tensor(told: Told, *, numbers: bool) -> Plain:
    if told.values is None:
        return None
    lanes = {name: _comparison(one, numbers=numbers) for name, one in told.lanes.items()}
    out: dict[str, Plain] = {
        "head": told.head,
        "shape": plain(told.values.shape),
        "statistics": plain(told.statistics),
        "lanes": lanes,
    }
    if numbers:
        out["values"] = plain(told.values)
    return out


def _comparison(found: Comparison, *, numbers: bool) -> Plain:
    told = plain(found)
    if not isinstance(told, dict):
        return told
    told["largest_relative"] = plain(found.largest_relative)
    told.pop("value")
    if not numbers:
        told.pop("other")
        told.pop("absolute")
    return told


def _looks(found: Attention | None) -> Plain:
    """Where the head looks; rows that stand for no single token have no position."""
    told = plain(found)
    if found is None or not isinstance(told, dict):
        return told
    places = found.positions.tolist()
    return {**told, "positions": [None if stands_for_none(one) else one for one in places]}


def _check(found: SelfCheck | None) -> Plain:
    told = plain(found)
    if found is None or not isinstance(told, dict):
        return None
    return {**told, "relative": plain(found.relative), "passed": found.passed}
