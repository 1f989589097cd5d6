"""What a diff says of two traces, as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import numpy as np

from kvtrace import units
from kvtrace.analysis.checks.report import DIVERGED, EQUAL, UNCHECKED
from kvtrace.analysis.checks.scenes.place_names import spoken
from kvtrace.analysis.heads.tensors import CACHE_TENSORS, NAMES
from kvtrace.analysis.two_runs.causes import cause
from kvtrace.analysis.two_runs.diff import Diff
from kvtrace.analysis.two_runs.logits import LogitsPart
from kvtrace.analysis.two_runs.rows import Parting
from kvtrace.analysis.two_runs.tokens import TokensPart
from kvtrace.tables import table
from kvtrace.text import safe, token
from kvtrace.trace import Tensor, Trace

_WIDTH = 100
_LAYERS_SHOWN = 16
_DAMAGE_SHOWN = 4
_LONG = {
    Tensor.QUERIES: "queries",
    Tensor.KEYS: "keys",
    Tensor.VALUES: "values",
    Tensor.OUTPUT: "the attention output",
}


def lines(found: Diff, files: tuple[str, str] | None = None) -> list[str]:
    """Everything a diff says.

    Args:
        found: The comparison.
        files: Paths of the two, as the reader can open them; by default the names of the traces.
    """
    traces = found.traces
    files = files or (traces[0].name, traces[1].name)
    out = [headline(found)]
    if found.first is not None:
        out += ["", *_where(found, found.first, traces, files)]
    if found.logits is not None:
        out += ["", *_behind(found.logits, files)]
    if found.settings:
        out += ["", "The runs themselves differ:", *_settings(found)]
    if found.parts:
        out += ["", *(line for part in found.parts[:4] for line in _part(part, found, traces))]
    if found.growth is not None:
        out += ["", "Largest relative difference by layer:", *_growth(found)]
    if found.verdict != UNCHECKED:
        out += ["", *textwrap.wrap(f"Counted as rounding: {safe(found.reason, 1000)}.", _WIDTH)]
    if found.verdict == EQUAL:
        out += textwrap.wrap(_of_logits(found.kept), _WIDTH)
    out += _unfinished(traces)
    beside = [one.text for trace in traces for one in trace.damage]
    for trace in traces:
        beside += [f"{trace.name}: {one.text}" for one in trace.not_recovered]
    out += _damaged(tuple(dict.fromkeys((*found.unread, *beside))))
    return out


def headline(found: Diff) -> str:
    """The verdict, and where."""
    if found.verdict == UNCHECKED:
        return f"could not check: {safe(found.reason, 1000)}"
    if found.logits is not None:
        step = found.logits.new_step
        return f"{DIVERGED} at step {step}, the logits, though all attention is equal"
    if found.first is None:
        return f"equal within rounding ({units.counted(found.tokens, 'token')} in common)"
    one = found.first
    kv = "kv head" if one.tensor in CACHE_TENSORS else "head"
    name = "" if found.finding is None else f", looks like {found.finding.name}"
    layer = spoken(found.traces[1].meta, one.layer)
    return f"{DIVERGED} at step {one.new_step}, {layer}, {kv} {one.head}, {_LONG[one.tensor]}{name}"


def _where(
    found: Diff, one: Parting, traces: tuple[Trace, Trace], files: tuple[str, str]
) -> Iterator[str]:
    rows = f"positions {one.position} to {one.position + one.count - 1}"
    if one.count == 1:
        rows = f"position {one.position}"
    elif one.beyond < one.count:
        rows = f"{one.beyond} of {rows}"
    sequence = f" of sequence {one.sequence}" if len(found.parts) > 1 or one.sequence else ""
    yield (
        f"  {rows}{sequence}: off by {one.apart:.2g} of the largest number; rounding explains "
        f"{one.limit:.1g}"
    )
    if found.finding is not None:
        kind = found.finding.kind
        evidence = found.finding.evidence.replace("the recomputed", "the old run's")
        evidence = evidence.replace("when recomputed", "in the old run")
        yield from _paragraph(f"{kind.name}: {kind.means}; {safe(evidence, 1000)}.")
        label = "What to do" if kind.name == "UNKNOWN" else "Usual cause"
        yield from _paragraph(f"{label}: {cause(found.finding)}")
    site = traces[1].site(one.layer)
    code = ", ".join(filter(None, (site.module, site.code)))
    yield f"  {safe(code, 400)}"
    head = one.head
    if one.tensor in CACHE_TENSORS:
        head *= site.num_heads // site.num_kv_heads  # of the query heads that read it, the first
    for (step, row), file in zip(one.places, files, strict=True):
        place = f"{step}/{one.layer}/{head}/{NAMES[one.tensor]}{f'/{row}' if row else ''}"
        yield f"  kvtrace open {safe(file, 1000)} --at {place}"


def _behind(one: LogitsPart, files: tuple[str, str]) -> Iterator[str]:
    """Logits that differ, though the attention before them is equal."""
    whose = f" of sequence {one.sequence}" if one.sequence else ""
    what = f"off by {one.apart:.2g}, the highest are up to {one.size:.3g}"
    if one.others:
        what = f"the highest are the same to the last bit, the sum of all is off by {one.apart:.2g}"
    yield f"  position {one.position}{whose}: {what}; rounding explains {one.limit:.1g}"
    yield "  Usual cause: what follows the last attention differs: MLP, final norm, head."
    for step, file in ((one.old_step, files[0]), (one.new_step, files[1])):
        yield f"  kvtrace open {safe(file, 1000)} --at {step}"


def _of_logits(kept: int) -> str:
    """What an equal verdict knows of what follows the last attention."""
    if not kept:
        return "No logits were recorded: what follows the last attention was not compared."
    highest = f"the {kept} highest" if kept > 1 else "the highest"
    return f"Of the logits after each step {highest} and the sum of all were compared, no others."


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="  ")


def _settings(found: Diff) -> list[str]:
    rows = [[safe(name), safe(old), "→", safe(new)] for name, old, new in found.settings]
    return [f"  {line}" for line in table(rows)]


def _part(part: TokensPart, found: Diff, traces: tuple[Trace, Trace]) -> Iterator[str]:
    """Where the tokens part, and whether that means anything."""
    whom = f"sequence {part.sequence}: " if part.sequence or len(found.parts) > 1 else ""
    if part.old is None or part.new is None:
        longer = "old" if part.new is None else "new"
        yield f"{whom}The {longer} run goes on after position {part.position - 1}."
        return
    words = [
        token(trace.token_text(one))
        for trace, one in zip(traces, (part.old, part.new), strict=True)
    ]
    margin = "" if part.chosen else ", in the prompt"
    if part.margin is not None:
        margin = f"; the old run's choice led by {part.margin:.2g} in logits"
    yield (
        f"{whom}The tokens part at position {part.position}: {words[0]} and {words[1]}{margin}. "
        "What follows is not compared."
    )


def _growth(found: Diff) -> list[str]:
    """One row a layer; of many layers some."""
    growth, limits = found.growth, found.limits
    if growth is None or limits is None:
        return []
    layers = list(range(len(growth)))
    if len(layers) > _LAYERS_SHOWN:
        chosen = np.linspace(0, len(layers) - 1, _LAYERS_SHOWN).round()
        layers = sorted({int(at) for at in chosen})
    rows = [["layer", *NAMES.values(), "rounding"]]
    for layer in layers:
        numbers = ["–" if np.isnan(one) else f"{one:.1e}" for one in growth[layer]]
        low, high = limits[layer].min(), limits[layer].max()
        rows.append([str(layer), *numbers, f"{low:.0e} to {high:.0e}"])
    return [f"  {line}" for line in table(rows)]


def _unfinished(traces: tuple[Trace, Trace]) -> list[str]:
    return [
        f"Mind: {safe(trace.name)} is incomplete; its first "
        f"{units.counted(len(trace), 'step')} were compared."
        for trace in traces
        if trace.ending is None
    ]


def _damaged(unread: tuple[str, ...]) -> list[str]:
    """What could not be read; of much some."""
    told = [f"Mind: {safe(one, 500)}" for one in unread[:_DAMAGE_SHOWN]]
    if len(unread) > len(told):
        told.append(f"Mind: {len(unread) - len(told)} more like these could not be read.")
    return [line for one in told for line in textwrap.wrap(one, _WIDTH, subsequent_indent="  ")]
