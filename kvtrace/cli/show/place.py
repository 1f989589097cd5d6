"""One place of a trace as lines of text: statistics, both lanes, where the head looks, numbers."""

from __future__ import annotations

import math

from kvtrace import units
from kvtrace.analysis.heads.attention import Attention
from kvtrace.analysis.rows.origin import NO_SINGLE, UNKNOWN, origin
from kvtrace.analysis.rows.packed import pool_text
from kvtrace.cli.show.at import At
from kvtrace.errors import KvtraceError
from kvtrace.tables import section, table
from kvtrace.text import safe, token
from kvtrace.trace import Trace, stands_for_none
from kvtrace.trace.dtypes import Floats

_LOOKED_AT = 10


def lines(trace: Trace, found: At, *, numbers: bool) -> list[str]:
    """Everything at a place; with `numbers`, every element."""
    here = found.place
    title = f"step {here.step}, layer {here.layer}, head {here.head}"
    title += f", sequence {here.sequence}" if here.sequence else ""
    out = section(f"{title}, lane {safe(here.lane)}", _statistics(found))
    out += section("lanes", _lanes(found))
    if found.looks is not None:
        out += section("looks at", _looks(trace, found, found.looks))
    if found.check is not None:
        verdict = "passed" if found.check.passed else "FAILED"
        rule = safe(trace.site(here.layer).rule, 20)
        out += section(
            "self-check",
            [
                f"{verdict}: {rule}(q·kᵀ)·v from the recorded rows differs from the recorded "
                f"output by {found.check.error:.2e}, {found.check.relative:.1e} of it"
            ],
        )
    if numbers:
        for told in found.tensors:
            if told.values is not None:
                out += section(f"{told.name}, head {told.head}", _numbers(told.values))
    return out


def _statistics(found: At) -> list[str]:
    rows = [["tensor", "head", "shape", "min", "max", "mean", "std", "NaN", "Inf"]]
    for told in found.tensors:
        if told.values is None or told.statistics is None:
            rows.append([told.name, str(told.head), "not recorded"])
            continue
        numbers = told.statistics
        shape = "×".join(map(str, told.values.shape))
        four = [numbers.minimum, numbers.maximum, numbers.mean, numbers.std]
        counts = [str(numbers.nan), str(numbers.infinite)]
        rows.append([told.name, str(told.head), shape, *map(_short, four), *counts])
    return table(rows, right=(1, 3, 4, 5, 6, 7, 8))


def _lanes(found: At) -> list[str]:
    rows = [["tensor", "lane", "verdict", "largest |Δ|", "relative", "row", "dim", "RMS", "beyond"]]
    for told in found.tensors:
        for name, one in told.lanes.items():
            numbers = [_short(one.largest), _short(one.largest_relative)]
            place = [str(one.row), str(one.dim), _short(one.rms), str(one.beyond)]
            rows.append([told.name, safe(name), str(one.verdict), *numbers, *place])
    return table(rows, right=(3, 4, 5, 6, 7, 8)) if len(rows) > 1 else []


def _looks(trace: Trace, found: At, looks: Attention) -> list[str]:
    here = found.place
    asks = "" if looks.query_token == UNKNOWN else token(trace.token_text(looks.query_token))
    pooled = trace.cache_layer(here.layer).block_slots > 0
    more = ["in the pool"] if pooled else []
    rows = [["weight", "token", "position", "slot", "row", "written in step", *more]]
    for row in looks.top(_LOOKED_AT):
        for_none = stands_for_none(int(looks.positions[row]))
        text = "" if looks.tokens[row] == UNKNOWN else trace.token_text(int(looks.tokens[row]))
        try:
            written = origin(trace, here.step, here.layer, row, here.sequence).written
        except KvtraceError:
            written = None
        rows.append(
            [
                units.weight(float(looks.weights[row])),
                token(text) if looks.tokens[row] != UNKNOWN else NO_SINGLE if for_none else "–",
                "–" if for_none else str(looks.positions[row]),
                str(looks.slots[row]),
                str(row),
                "–" if written is None else str(written),
                *([pool_text(trace, here.step, here.layer, row, here.sequence)] if pooled else ()),
            ]
        )
    seen = int(looks.seen.sum())
    measures = f"entropy {looks.entropy:.2f} bits of {math.log2(max(seen, 1)):.2f}"
    if looks.induction > 0 or looks.same_token > 0:  # else there is no earlier one, as known
        measures += f", after an earlier {asks or 'same token'}: {units.weight(looks.induction)}"
    measures += f", sink {units.weight(looks.sink_share)}" if looks.sink_share else ""
    asking = f"asking: {asks or '–'} at position {looks.query_position}; {measures}"
    return [asking, *table(rows, right=(0, 2, 3, 4, 5))]


def _numbers(values: Floats) -> list[str]:
    """Every element, one row a line, exact to float32."""
    return table(
        [[str(i), *(f"{value:.9g}" for value in row)] for i, row in enumerate(values.tolist())],
        right=range(values.shape[1] + 1),
    )


def _short(value: float) -> str:
    return f"{value:.4g}"
