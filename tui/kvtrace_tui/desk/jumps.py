"""Deeds that jump: to the next breakpoint, to what was found, to the largest difference."""

from __future__ import annotations

from msgspec.structs import replace

from kvtrace import text
from kvtrace.trace import CACHED, Tensor
from kvtrace_tui.desk import breakpoints, moves
from kvtrace_tui.desk.deeds import Deed
from kvtrace_tui.desk.desk import Desk
from kvtrace_tui.found import Found

_PANES = {
    "q": "queries", "k": "keys", "v": "values", "output": "output",
    "mask": "attention", "weights": "attention",
}  # fmt: skip
_TENSOR_PANES = {Tensor.QUERIES: "queries", Tensor.KEYS: "keys", Tensor.VALUES: "values"}


def stop_by(direction: int) -> Deed:
    """Go to the next or the previous breakpoint or finding."""

    def deed(desk: Desk) -> None:
        stops = breakpoints.stops(desk.recorded, desk.breakpoints, desk.found)
        stop = breakpoints.next_stop(stops, desk.cursor.step, direction, desk.stop)
        if stop is None:
            where = "after" if direction > 0 else "before"
            other = breakpoints.next_stop(stops, desk.cursor.step, -direction, desk.stop)
            way = "b sets one here, B edits conditions"
            if other is not None:
                way = f"{'C goes back' if direction > 0 else 'c goes on'} to step {other.step}"
            if desk.answer.awaited:
                way = f"the trace is still being checked; {way}"
            desk.say(f"no breakpoint or finding {where} step {desk.cursor.step}: {way}")
            return
        if stop.found is not None:
            to_found(desk, stop.found)
        else:
            desk.go(moves.to_step(desk.cursor, desk.recorded, stop.step))
            desk.say(f"step {stop.step}: {text.safe(stop.reason)}")
        desk.stop = stop

    return deed


def to_found(desk: Desk, found: Found) -> None:
    """Put the cursor on what a finding speaks of, with the difference in view."""
    if desk.trace is None:
        return
    desk.stop = None
    if found.step is not None:
        from kvtrace_tui.desk import differences

        desk.go(differences.show_found(desk.cursor, desk.trace, found))
        desk.stop = breakpoints.Stop(found.step, found.sentence, found)
        if found.tensor in _PANES:
            desk.focus_on(_PANES[found.tensor])
    desk.say(f"{found.sign} {found.name} at {found.place}: f lists all that was found")


def jump_to_difference(desk: Desk) -> None:
    """Go where the lanes differ most."""
    from kvtrace.analysis.lanes.parting import largest_difference
    from kvtrace_tui.desk import differences

    place = largest_difference(desk.recorded, desk.cursor.lane)
    if place is None:
        desk.say(f"nothing was compared with the {desk.cursor.lane} lane")
        return
    desk.go(replace(differences.show(desk.cursor, desk.recorded, place), base=CACHED))
    desk.focus_on(_TENSOR_PANES.get(place.tensor, "output"))
    desk.say(f"largest difference: {place.text}")
