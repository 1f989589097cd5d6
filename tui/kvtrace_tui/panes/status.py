"""The top line: which trace, which model, where, and whether it is still being recorded."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from rich.style import Style
from textual.strip import Strip

from kvtrace import text
from kvtrace.trace import Meta, Trace
from kvtrace_tui.cursor import Cursor, View
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, line
from kvtrace_tui.panes.pane import Pane

_SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}
_STYLES = {"recorded": ink.BAR_DIM, "incomplete": ink.BAR_WARN, "failed": ink.BAR_BAD}
_SIGNS = {"recorded": "■", "incomplete": "◧", "failed": "✗", "paused": "‖"}


class StatusPane(Pane):
    """One line."""

    grows = True

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._recording = ""
        self._message = ""

    def say(self, recording: str, message: str = "") -> None:
        """How the recording stands ("running", "recorded" …), and what the last key led to."""
        if (recording, message) != (self._recording, self._message):
            self._recording, self._message = recording, message
            self.redraw()

    def depends(self, cursor: Cursor) -> Hashable:
        """Where, not how."""
        return cursor.step, cursor.layer, cursor.head, cursor.sequence, cursor.view, cursor.inside

    def draw(self, trace: Trace, cursor: Cursor, width: int, height: int) -> list[Strip]:
        """Trace, model and shape recede; where the cursor is does not."""
        model = trace.meta.model
        recording = self._recording or ("recorded" if trace.ending else "incomplete")
        sign, style = _SIGNS.get(recording, "●"), _STYLES.get(recording, ink.BAR_GOOD)
        pieces: list[Piece] = [
            (" kvtrace ", ink.BAR_KEY),
            (f" {text.safe(trace.name, 28)} ", ink.BAR_DIM),
            (f" {text.safe(model.name, 28)} ", ink.BAR),
            *_about(trace.meta, width),
            (f" step {cursor.step}/{trace.numbers[-1] if len(trace) else 0} ", ink.BAR_STRONG),
            (f" L{cursor.layer} H{cursor.head} ", ink.BAR_STRONG),
        ]
        if trace.numbers and trace.step(cursor.step).num_sequences > 1:
            pieces.append((f" sequence {cursor.sequence} ", ink.BAR_STRONG))
        if cursor.view is not View.VALUE:
            pieces.append((f" {cursor.view} ", ink.BAR_WARN))
        if cursor.inside:
            pieces.append((" inside the step ", ink.BAR_WARN))
        if self._message:
            pieces.append((f" {text.safe(self._message, 300)} ", ink.BAR_WARN))
        if model.banner:
            pieces.append((f" {text.safe(model.banner, 120)} ", ink.BAR_BAD))
        if trace.damage:
            pieces.append((f" damaged: {len(trace.damage)} parts ", ink.BAR_BAD))
        right: list[Piece] = [(f"{sign} {recording} ", style)]
        return [line(width, *pieces, fill=ink.BAR, right=right)]


def _about(meta: Meta, width: int) -> list[Piece]:
    """Shape and dtype, where there is room."""
    style: Style = ink.BAR_DIM
    return [(f" {shape_of(meta)} ", style)] if width >= 100 and meta.sites else []


def shape_of(meta: Meta) -> str:
    """Layers × heads (kv heads) × features, in ranges where layers differ."""
    sites = meta.sites
    heads, kv = _span(s.num_heads for s in sites), _span(s.num_kv_heads for s in sites)
    dims = _span(s.key_dim for s in sites)
    grouped = f"({kv} kv)" if kv != heads else ""
    dtype = _SHORT.get(meta.model.dtype, text.safe(meta.model.dtype, 12))
    return f"{len(sites)}L×{heads}H{grouped}×{dims} {dtype}"


def _span(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"
