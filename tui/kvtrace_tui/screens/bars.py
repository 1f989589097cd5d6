"""One-line parts around the panes: status, and keys."""

from __future__ import annotations

from textwrap import wrap

from textual.strip import Strip

from kvtrace.analysis.nature import attention_is
from kvtrace.analysis.phase import phase as phase_of
from kvtrace.analysis.rows.packed import request_name
from kvtrace.errors import KvtraceError
from kvtrace.text import safe
from kvtrace.trace import Site, Trace
from kvtrace_tui.action import Action
from kvtrace_tui.actions import footer
from kvtrace_tui.desk.cursor import Cursor
from kvtrace_tui.desk.desk import Desk, Recording
from kvtrace_tui.drawing import ink
from kvtrace_tui.drawing.lines import Piece, elided, line, page, shown_in
from kvtrace_tui.panes.lined import Lined

_SIGNS = {
    Recording.LOADING: ("◌ loading", ink.BAR_WARN),
    Recording.RUNNING: ("● live", ink.BAR_GOOD),
    Recording.PAUSED: ("‖ paused", ink.BAR_WARN),
    Recording.GROWING: ("● growing", ink.BAR_GOOD),
    Recording.RECORDED: ("■ recorded", ink.BAR),
    Recording.INCOMPLETE: ("▲ incomplete", ink.BAR_WARN),
    Recording.FAILED: ("✗ recorder failed", ink.BAR_BAD),
}
_MOST_SAID = 3
_LEAST_NAME = 16
_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}


class Drawn(Lined):
    """A part that is drawn line by line by a pure function of the desk."""

    def __init__(self, desk: Desk, id: str) -> None:  # noqa: A002 - Textual's own name
        super().__init__(id=id)
        self.desk = desk
        self._lines: list[Strip] = []
        self._drawn: object = None

    def draw(self, width: int, height: int) -> list[Strip]:
        """The lines for a size."""
        raise NotImplementedError

    def update(self) -> None:
        """Draw again, and tell the terminal only if something is different."""
        width, height = self.size
        if not width or not height:
            return
        lines = self._made(width, height)
        if lines != self._lines:
            self._lines = lines
            self.want_frame()

    fill = ink.TEXT

    def on_resize(self) -> None:
        """Draw for the new size."""
        self.update()

    def lines(self) -> list[Strip]:
        """What was drawn last; drawn again where the size is another."""
        width, height = self.size
        if len(self._lines) != height or (self._lines and self._lines[0].cell_length != width):
            self._lines = self._made(width, height)
        return self._lines

    def _made(self, width: int, height: int) -> list[Strip]:
        return shown_in(page(self.draw(width, height), width, height, self.fill), self.terminal)


def said_in(message: str, width: int) -> list[str]:
    """A message in lines of a width, at most three."""
    return wrap(safe(message, 400), max(width - 1, 1), max_lines=_MOST_SAID, placeholder=" …")


class StatusBar(Drawn):
    """Trace, model, place, and how the trace stands."""

    fill = ink.BAR

    def draw(self, width: int, height: int) -> list[Strip]:
        """One line; what matters least goes first when there is no room."""
        sign, style = _SIGNS[self.desk.recording]
        if self.desk.trace is not None and self.desk.trace.damage:
            sign, style = f"▲ {len(self.desk.trace.damage)} damaged", ink.BAR_BAD
        if self.desk.playing:
            sign = f"▶ playing  {sign}"
        answer = _answer(self.desk)
        right = [*answer, (f"{sign} ", style)]
        room = width - len(sign) - 3 - sum(len(words) for words, _ in answer)
        status = _status(self.desk, max(width // 5, _LEAST_NAME))
        return [line(width, *_fitting(status, room), fill=ink.BAR, right=right)]


def _answer(desk: Desk) -> list[Piece]:
    """Whether the lanes are equal, in a few words."""
    answer = desk.answer
    if answer.equal:
        apart = any(one.apart for one in desk.found)
        return [("✓ no bug (f)  " if apart else "✓ lanes equal  ", ink.BAR_GOOD)]
    if answer.diverged:
        count = sum(one.grave for one in desk.found)
        return [(f"✗ {count} finding{'s' if count != 1 else ''} (f)  ", ink.BAR_BAD)]
    return [(f"{answer.verdict}  ", ink.BAR_DIM)] if answer.verdict else []


def _status(desk: Desk, most: int) -> list[tuple[int, Piece]]:
    """(importance, piece): 0 is never left out; a name beyond `most` cells gives way to others."""
    found: list[tuple[int, Piece]] = [(9, (" kvtrace", ink.BAR_KEY))]
    trace, cursor = desk.trace, desk.cursor
    if trace is None:
        return found
    name = safe(trace.name, 32)
    found.append((4 if len(name) <= most else 7, (f" {name}", ink.BAR_STRONG)))
    found.append((5, (f"  {safe(trace.meta.model.name, 28)}", ink.BAR)))
    if trace.meta.sites and cursor.layer < len(trace.meta.sites):
        found.append((6, (f" {_shape(trace, trace.site(cursor.layer))}", ink.BAR_DIM)))
    if trace.meta.model.banner:
        found.append((1, (f"  {safe(trace.meta.model.banner, 60)}", ink.BAR_BAD)))
    if trace.numbers:
        found.append((0, (f"  step {cursor.step}/{trace.numbers[-1]}", ink.BAR_STRONG)))
        phase, row = _of_step(trace, cursor)
        found.append((7, (f" {phase}", ink.BAR_DIM)))
        if trace.meta.sites:
            found.append((1, (f"  L{cursor.layer} H{cursor.head}", ink.BAR_STRONG)))
        if row:
            found.append((2, (f" {row}", ink.BAR_STRONG)))
        if not trace.meta.sites:
            return found
        view = f"  {cursor.shows}" + (" · sub-step" if cursor.inside else "")
        found.append((3, (view, ink.BAR_KEY if cursor.view.needs_lane else ink.BAR_DIM)))
        found += _kind(trace, cursor)
    return found


def _kind(trace: Trace, cursor: Cursor) -> list[tuple[int, Piece]]:
    """What is particular about the layer's attention, as many words as fit.

    Groups go first when there is no room: the shape says how many kv heads there are.
    """
    if cursor.layer >= len(trace.meta.sites):
        return []
    words = attention_is(trace, cursor.layer, cursor.step)
    return [
        (20 if word[:3] in ("GQA", "MQA") else 10 + at, (f"  {word}", ink.BAR))
        for at, word in enumerate(words)
    ]


def _shape(trace: Trace, site: Site) -> str:
    kv = "" if site.num_kv_heads == site.num_heads else f"({site.num_kv_heads}kv)"
    dtype = _DTYPES.get(trace.meta.model.dtype, trace.meta.model.dtype)
    states = sum(layer.kind == "state" for layer in trace.meta.cache_layers)
    more = f"+{states} recurrent " if states else ""
    layers = f"{len(trace.meta.sites)}L×{site.num_heads}H{kv}"
    return f"{layers} {more}d{site.key_dim} {safe(dtype, 12)}"


def _of_step(trace: Trace, cursor: Cursor) -> tuple[str, str]:
    """The phase of a step, and the request or sequence looked at, where there are several."""
    try:
        step = trace.step(cursor.step)
        several = f"B{cursor.sequence}" if step.num_sequences > 1 else ""
        return phase_of(trace, step), request_name(step) or several
    except KvtraceError:
        return "damaged", ""


def _fitting(pieces: list[tuple[int, Piece]], room: int) -> list[Piece]:
    """What fits, the most important first, in the order given: a long one leaves room to others."""
    kept: set[int] = set()
    for index in sorted(range(len(pieces)), key=lambda index: pieces[index][0]):
        importance, (words, _) = pieces[index]
        if importance == 0 or len(words) <= room:
            kept.add(index)
            room -= len(words)
    return [pieces[index][1] for index in sorted(kept)]


class FooterBar(Drawn):
    """What the last key led to, or the keys."""

    fill = ink.BAR

    def draw(self, width: int, height: int) -> list[Strip]:
        """One line, or all that the message takes."""
        right: list[Piece] = [(" ? ", ink.BAR_KEY), ("help ", ink.BAR_DIM)]
        said = said_in(self.desk.message, width)[:height]
        if said:
            *above, last = [elided([(f" {words}", ink.BAR_STRONG)], width) for words in said]
            lines = [line(width, *each, fill=ink.BAR) for each in above]
            return [*lines, line(width, *last, fill=ink.BAR, right=right)]
        pieces: list[Piece] = []
        used = 1
        for action in footer(self.desk):
            if action.id == "help":
                continue  # it has its place at the right
            keys, words = action.label or (action.shown_keys, action.title)
            size = len(keys) + len(words) + 3
            if used + size > width - 8:
                break
            used += size
            pieces += self._entry(action, keys, words)
        return [line(width, (" ", ink.BAR), *pieces, fill=ink.BAR, right=right)]

    def _entry(self, action: Action, keys: str, words: str) -> list[Piece]:
        can = action.why_not(self.desk) is None
        key_ink, word_ink = (ink.BAR_KEY, ink.BAR) if can else (ink.BAR_DIM, ink.BAR_DIM)
        return [(keys, key_ink), (f" {words}  ", word_ink)]
