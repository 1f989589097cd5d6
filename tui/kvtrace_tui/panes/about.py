"""What is true of the row under the crosshair, its layer and the cache: words, not numbers."""

from __future__ import annotations

from collections.abc import Iterator

from textual.strip import Strip

from kvtrace import text, units
from kvtrace.analysis.attending import nearest
from kvtrace.analysis.nature import attention_is, latents_of, readers
from kvtrace.analysis.rows.changes import change
from kvtrace.analysis.rows.origin import NO_SINGLE, Origin, origin
from kvtrace.analysis.rows.packed import pool_text
from kvtrace.errors import KvtraceError
from kvtrace.trace import Trace
from kvtrace_tui.desk.cursor import Cursor
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece
from kvtrace_tui.panes.named import NAME_WIDTH, long_pair, pair


def kind_lines(trace: Trace, cursor: Cursor, width: int) -> list[Strip]:
    """What is particular about the layer's attention."""
    words = attention_is(trace, cursor.layer, cursor.step)
    return long_pair(width, "kind", (" · ".join(words), ink.TOKEN)) if words else []


def origin_lines(trace: Trace, cursor: Cursor, width: int) -> list[Strip]:
    """The token, its place, and the step that wrote its row."""
    try:
        found = origin(trace, cursor.step, cursor.layer, cursor.row, cursor.sequence)
    except KvtraceError as error:
        return [pair(width, "row", (text.safe(str(error), 200), ink.WARN))]
    word = "padding" if found.padding else "encoder row"
    if found.for_none:
        word = NO_SINGLE
    if found.token >= 0 and not found.padding:
        word = text.token(trace.token_text(found.token), max(width - 16, 8))
    place = f"position {found.position} · slot {found.slot}"
    if found.for_none:
        place = f"slot {found.slot}"
    if len(place) > width - NAME_WIDTH - 1:
        place = f"pos {found.position} · slot {found.slot}"
    pool = pool_text(trace, cursor.step, cursor.layer, cursor.row, cursor.sequence)
    at = [pair(width, "at", (place, ink.TEXT))]
    if pool:
        at = long_pair(width, "at", (f"{place} · {pool}", ink.TEXT))
    return [
        pair(width, "token", (word, ink.TOKEN)),
        *at,
        pair(width, "written", *_written(found, cursor)),
    ]


def _written(found: Origin, cursor: Cursor) -> Iterator[Piece]:
    """By which step, for whom, and what became of it."""
    if found.written is None:
        yield "by a step that is lost", ink.WARN
    else:
        now = " (now)" if found.written == cursor.step else ""
        yield f"step {found.written}{now}", ink.TEXT
    if found.changed:
        yield f", first step {found.first}", ink.WARN
    if found.sequence != cursor.sequence:
        yield f", sequence {found.sequence}", ink.TEXT
    if found.shared_from is not None:
        yield f", by L{found.shared_from}", ink.TEXT
    if found.evicted:
        yield ", then evicted", ink.WARN


def layer_lines(trace: Trace, cursor: Cursor, width: int) -> list[Strip]:
    """What the step did to the rows the layer reads, and where it is written."""
    site = trace.site(cursor.layer)
    step, latents = trace.step(cursor.step), latents_of(trace, cursor.layer)
    kept = None if latents is None else step.cache_step(latents.index)
    if latents is not None and kept is not None:  # K and V are made of them, and let go again
        did = f"latents {change(trace, latents.index, kept).text}"
    else:
        group = trace.cache_step(cursor.step, cursor.layer)
        did = change(trace, site.reads, group).text
    if site.shared_from is not None:
        did = f"L{site.shared_from} wrote: {did}"
    return [*long_pair(width, "did", (did, ink.TEXT)), *_written_in(trace, cursor, width)]


def absent_lines(trace: Trace, cursor: Cursor, width: int) -> list[Strip]:
    """Of a layer that did not attend in the step: that, and where it did."""
    there = nearest(trace, cursor.step, cursor.layer)
    words = "not in this step" if there is None else f"not here, but in step {there}: g goes there"
    return [
        *kind_lines(trace, cursor, width),
        *long_pair(width, "attends", (words, ink.WARN)),
        *_written_in(trace, cursor, width),
        *memory_lines(trace, cursor, width),
    ]


def _written_in(trace: Trace, cursor: Cursor, width: int) -> list[Strip]:
    """Where the layer is, in the model and in its code, and who else reads its rows."""
    site = trace.site(cursor.layer)
    module = _ending(text.safe(site.module, 120) or "the model", width)
    lines = [pair(width, "module", (module, ink.TEXT))]
    others = readers(trace, cursor.layer)
    if others:
        lines.append(pair(width, "read by", (f"L{', L'.join(map(str, others))} too", ink.TEXT)))
    if site.code:
        code = text.safe(site.lines, 120)
        if len(code) > width - NAME_WIDTH - 1:  # the scores come first there, too
            code = code.replace(" scores, ", ", ").removesuffix(" output")
        lines.append(pair(width, "code", (_ending(code, width), ink.TOKEN)))
    return lines


def _ending(words: str, width: int) -> str:
    """The end of it, where the whole does not fit: paths differ there."""
    room = max(width - NAME_WIDTH - 1, 4)
    return words if len(words) <= room else f"…{words[1 - room :]}"


def memory_lines(trace: Trace, cursor: Cursor, width: int) -> list[Strip]:
    """What the cache takes, and what part of it is recurrent."""
    size = units.byte_size(trace.step(cursor.step).cost.cache_bytes)
    ways = f"{size}, all layers", f"{size} in all"
    said = ways[len(ways[0]) > width - NAME_WIDTH - 1]
    lines = [pair(width, "cache", (said, ink.TEXT))]
    states = [layer for layer in trace.meta.cache_layers if layer.kind == "state"]
    if states:
        each = units.byte_size(sum(layer.state_bytes for layer in states))
        lines.append(pair(width, "states", (f"{each} in {len(states)} layers", ink.WARN)))
    return lines
