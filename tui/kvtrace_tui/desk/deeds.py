"""What each action does to the desk. No Textual here."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from kvtrace import text
from kvtrace.analysis.nature import latents_of
from kvtrace.errors import UsageError
from kvtrace_tui.arrangement import PANES
from kvtrace_tui.desk import breakpoints, copying, moves, places, reasons
from kvtrace_tui.desk.cursor import Axis, Cursor
from kvtrace_tui.desk.desk import TRAITS, Desk, Recording
from kvtrace_tui.drawing.palettes import PALETTES

Deed = Callable[[Desk], None]

FAR = 16
PAGE = 64

_AXES = {Axis.DIM: "feature"}
"""What people call an axis, where that is another word."""

_OF_ATTENTION = (Axis.LAYER, Axis.HEAD, Axis.QUERY, Axis.ROW, Axis.DIM)
"""Axes that there are only where attention was seen."""


# -- time ----------------------------------------------------------------------------------------


def step_by(by: int) -> Deed:
    """Go some steps on or back; at the end of a paused live run, compute one more."""

    def deed(desk: Desk) -> None:
        trace = desk.recorded
        at_end = bool(trace.numbers) and desk.cursor.step == trace.numbers[-1]
        if by > 0 and at_end and desk.recording is Recording.PAUSED:
            desk.order("step", "computing one more step")
            desk.following = True
            return
        desk.go(moves.by_steps(desk.cursor, trace, by))

    return deed


def to_edge(last: bool) -> Deed:
    """Go to the first step, or to the last one and stay with it while it grows."""

    def deed(desk: Desk) -> None:
        trace = desk.recorded
        desk.go(moves.to_step(desk.cursor, trace, trace.numbers[-1 if last else 0]))
        desk.following = last and desk.recording.grows

    return deed


def walk_by(by: int) -> Deed:
    """Go layer by layer."""

    def deed(desk: Desk) -> None:
        desk.go(moves.walk(desk.cursor, desk.recorded, by))

    return deed


def toggle_break(desk: Desk) -> None:
    """Set or clear a breakpoint at this step."""
    before = desk.breakpoints
    desk.breakpoints = breakpoints.toggled(before, desk.cursor.step)
    done = "cleared" if len(desk.breakpoints) < len(before) else "set"
    desk.say(f"breakpoint at step {desk.cursor.step} {done}")


def edit_breaks(desk: Desk) -> None:
    """Ask for all conditions."""

    def take(answer: str) -> None:
        desk.breakpoints = breakpoints.parse(answer)
        desk.say(f"breakpoints: {text.safe(answer) or 'none'}")

    desk.stage.ask(
        'stop at (step 12, token "key", finding)', breakpoints.written(desk.breakpoints), take
    )


def toggle_play(desk: Desk) -> None:
    """Let steps go on by themselves; a live run pauses or goes on recording."""
    if desk.recording is Recording.RUNNING and desk.following:
        desk.order("pause", "the recorder pauses after this step")
    elif desk.recording is Recording.PAUSED and reasons.at_last(desk) is not None:
        desk.stage.send("run")
        desk.following = True
    else:
        desk.playing = not desk.playing


def go_to(desk: Desk) -> None:
    """Ask for a place."""
    trace = desk.recorded
    last = trace.numbers[-1] if trace.numbers else 0
    desk.stage.ask(
        f"go to step 0…{last} (or +5, L3 H5, row 7 dim 0)",
        "",
        lambda answer: desk.go(places.go_to(answer, desk.cursor, trace)) if answer else None,
    )


def find_token(desk: Desk) -> None:
    """Ask for a text and put the crosshair on the next row whose token has it."""
    trace = desk.recorded

    def take(answer: str) -> None:
        wanted = answer or desk.searched
        if not wanted:
            return
        desk.searched = wanted
        found = places.find_token(wanted, desk.cursor, trace)
        if found is None:
            desk.say(f"no token of this step has {text.safe(wanted)!r} in it")
            return
        desk.go(found)
        desk.say(f"row {found.row}: {text.token(places.row_texts(found, trace)[found.row])}")

    again = f" (nothing: {text.safe(desk.searched, 24)!r} again)" if desk.searched else ""
    desk.stage.ask(f"find a token{again}", "", take)


# -- place ---------------------------------------------------------------------------------------


def along(axis: Axis, by: int) -> Deed:
    """Move along one axis, whatever has the focus."""

    def deed(desk: Desk) -> None:
        _move(desk, axis, by)

    return deed


def arrow(direction: str, by: int) -> Deed:
    """Move what the focused pane's arrows mean: "across", "down" or "main"."""

    def deed(desk: Desk) -> None:
        axis = getattr(desk.traits, direction)
        if axis is not None:
            _move(desk, axis, by)

    return deed


def _move(desk: Desk, axis: Axis, by: int) -> None:
    """Go along an axis; at its end, say so."""
    before = desk.cursor
    desk.go(moves.along(before, desk.recorded, axis, by))
    if desk.cursor == before and axis in _OF_ATTENTION and (why := reasons.blind(desk)):
        desk.say(why)
    elif desk.cursor == before:
        end, words = ("last" if by > 0 else "first"), _AXES.get(axis, axis.value)
        desk.say(f"this is the {end} {words}")


def show_pane(index: int) -> Deed:
    """Give a pane the focus."""

    def deed(desk: Desk) -> None:
        desk.focus_on(PANES[index])

    return deed


def cycle_focus(by: int) -> Deed:
    """The next or the previous pane."""

    def deed(desk: Desk) -> None:
        order = list(TRAITS)
        desk.focus_on(order[(order.index(desk.focus) + by) % len(order)])

    return deed


# -- view ----------------------------------------------------------------------------------------


def changed(change: Callable[[Cursor], Cursor], says: Callable[[Cursor], str]) -> Deed:
    """Look at the same place in another way, and say how."""

    def deed(desk: Desk) -> None:
        desk.cursor = change(desk.cursor)
        desk.say(says(desk.cursor))

    return deed


def toggle_kept(desk: Desk) -> None:
    """What was attended to, or what the cache keeps."""
    desk.cursor = replace(desk.cursor, kept=not desk.cursor.kept)
    if not desk.cursor.kept:
        desk.say("K and V as they were attended to")
    elif latents_of(desk.recorded, desk.cursor.layer) is None:
        desk.say("K and V as the cache keeps them after the step")
    else:
        desk.say("latents and rotary keys, of which K and V are made, as the cache keeps them")


def other_lanes(desk: Desk) -> None:
    """Compare another pair of lanes."""
    desk.cursor = moves.next_pair(desk.cursor, desk.recorded)
    desk.say(f"comparing {desk.cursor.base} − {desk.cursor.lane}")


def next_palette(cursor: Cursor) -> Cursor:
    """The next pair of palettes."""
    return moves.next_palette(cursor, len(PALETTES))


def toggle_numbers(desk: Desk) -> None:
    """Map or numbers; the grid, which has one number a head, shows another measure."""
    if desk.focus == "grid":
        desk.say(f"heads: {desk.stage.next_measure()}")
        return
    desk.cursor = replace(desk.cursor, numbers=not desk.cursor.numbers)
    desk.say("numbers" if desk.cursor.numbers else "map")


def zoom_by(by: int) -> Deed:
    """Enlarge or shrink maps."""
    return changed(lambda cursor: moves.zoomed(cursor, by), lambda cursor: f"zoom {cursor.zoom}")


def maximise(desk: Desk) -> None:
    """The focused pane alone."""
    desk.maximised = not desk.maximised


def back(desk: Desk) -> None:
    """Undo maximising and playing, in that order."""
    if desk.maximised:
        desk.maximised = False
    elif desk.playing:
        desk.playing = False
    desk.message = ""


# -- out -----------------------------------------------------------------------------------------


def copy_value(desk: Desk) -> None:
    """Copy the number under the crosshair as it is shown, all its digits."""
    cursor, tensor = desk.cursor, desk.traits.tensor
    if desk.focus == "attention":
        value, what = copying.weight_at(cursor, desk.recorded), f"weight on row {cursor.row}"
    else:
        value, what = copying.value_at(cursor, desk.recorded, tensor), tensor.name.lower()
        what += "" if cursor.shows == "value" else f", {cursor.shows}"
    desk.stage.copy(repr(value))
    desk.say(f"copied {value!r} ({what})")


def copy_expression(desk: Desk) -> None:
    """Copy Python that gives the same number."""
    if desk.focus == "attention":
        code = copying.weight_expression(desk.cursor, desk.recorded)
    else:
        code = copying.expression(desk.cursor, desk.recorded, desk.traits.tensor)
    desk.stage.copy(code)
    desk.say(f"copied {text.safe(code)}")


def run_on(desk: Desk) -> None:
    """Let the recorder go on from here."""
    desk.stage.send("run")
    desk.following = True


def stop_recorder(desk: Desk) -> None:
    """End the recording after the step under way."""
    desk.order("stop", "the recorder stops after this step")


def choose_token(desk: Desk) -> None:
    """Ask which token the live run shall go on with."""
    trace = desk.recorded
    step = trace.step(desk.cursor.step)
    ids = step.top[0].ids if step.top else ()
    prompt = trace.step(trace.numbers[0]).tokens[0]

    def take(answer: str) -> None:
        known = (*reversed(prompt), *reversed(ids))
        shown = {text.token(trace.token_text(token)): token for token in known}
        token = shown.get(answer, shown.get(text.token(answer)))
        if token is None:
            if not (answer.isascii() and answer.isdecimal()):
                raise UsageError(
                    f"{text.safe(answer)!r} is no rival, token of the prompt, or token id."
                )
            token = int(answer)
        desk.stage.send("choose", token)
        desk.following = True

    rivals = " ".join(text.token(trace.token_text(token)) for token in ids[:5])
    desk.stage.ask(f"go on with ({rivals}, or a token id)", "", take)
