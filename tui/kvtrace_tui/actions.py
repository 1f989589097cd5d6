"""The one table of everything a key can do: the footer, `?`, the palette and the docs read it."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from kvtrace_tui.action import Action
from kvtrace_tui.arrangement import PANES
from kvtrace_tui.desk import deeds, jumps, moves, reasons
from kvtrace_tui.desk.cursor import Axis
from kvtrace_tui.desk.deeds import FAR, PAGE, Deed, along, arrow, changed
from kvtrace_tui.desk.desk import TRAITS, Desk
from kvtrace_tui.drawing.palettes import PALETTES

TIME, PLACE, VIEW, RUN, SCREEN = GROUPS = ("time", "place", "view", "recorder", "screen")


def _open(name: str) -> Deed:
    return lambda desk: desk.stage.open(name)


# fmt: off
def _time() -> Iterable[Action]:
    yield Action("next_step", ("n",), "Next",
                 "Go to the next step; in a paused live run, compute it.", TIME,
                 deeds.step_by(1), reasons.no_later, weight=1)
    yield Action("previous_step", ("N",), "Back", "Go to the previous step.",
                 TIME, deeds.step_by(-1), reasons.at_first, weight=2)
    yield Action("next_stop", ("c",), "Continue", "Go to the next breakpoint or finding.",
                 TIME, jumps.stop_by(1), weight=9)
    yield Action("previous_stop", ("C",), "Rewind", "Go to the previous breakpoint or finding.",
                 TIME, jumps.stop_by(-1))
    yield Action("walk", ("s",), "Sub-step", "Go on by one layer inside the step.",
                 TIME, deeds.walk_by(1), weight=8)
    yield Action("walk_back", ("S",), "Sub-step back", "Go back by one layer inside the step.",
                 TIME, deeds.walk_by(-1))
    yield Action("play", ("space",), "Play",
                 "Play or pause; in a live run, pause recording or let it go on.",
                 TIME, deeds.toggle_play, reasons.over, weight=3)
    yield Action("go_to", ("g",), "Go to", "Go to a step, layer, head, row, feature or sequence.",
                 TIME, deeds.go_to, weight=10)
    yield Action("first_step", ("home",), "First", "Go to the first step.",
                 TIME, deeds.to_edge(last=False), reasons.at_first)
    yield Action("last_step", ("end",), "Last", "Go to the last step; a growing run is followed.",
                 TIME, deeds.to_edge(last=True), reasons.over)
    yield Action("break", ("b",), "Break", "Set or clear a breakpoint at this step.",
                 TIME, deeds.toggle_break, weight=13)
    yield Action("edit_breaks", ("B",), "Conditions",
                 "Edit what c stops at: steps, tokens, findings.", TIME, deeds.edit_breaks)


def _place() -> Iterable[Action]:
    for id_, key, title, axis, by, weight, label in (
        ("layer_up", "left_square_bracket", "Layer −", Axis.LAYER, -1, 4, ("[ ]", "Layer")),
        ("layer_down", "right_square_bracket", "Layer +", Axis.LAYER, 1, 0, None),
        ("head_up", "left_curly_bracket", "Head −", Axis.HEAD, -1, 6, ("{ }", "Head")),
        ("head_down", "right_curly_bracket", "Head +", Axis.HEAD, 1, 0, None),
    ):
        yield Action(id_, (key,), title, f"Go to the {_way(by)} {axis.value}.", PLACE,
                     along(axis, by), weight=weight, label=label)
    for id_, key, by in (("sequence_up", "left_parenthesis", -1),
                         ("sequence_down", "right_parenthesis", 1)):
        yield Action(id_, (key,), "Sequence " + ("+" if by > 0 else "−"),
                     f"Go to the {_way(by)} sequence of the batch.", PLACE,
                     along(Axis.SEQUENCE, by), reasons.needs_batch)
    for name, letter, direction, by in (("left", "h", "across", -1), ("down", "j", "down", 1),
                                        ("up", "k", "down", -1), ("right", "l", "across", 1)):
        yield Action(name, (name, letter), name.capitalize(), f"Move the crosshair {name}.", PLACE,
                     arrow(direction, by), reasons.no_axis(direction))
        yield Action(f"far_{name}", (letter.upper(),), f"Far {name}",
                     f"Move the crosshair {name} by {FAR}.", PLACE,
                     arrow(direction, by * FAR), reasons.no_axis(direction))
    for id_, key, by, way in (("page_back", "pageup", -1, "back"),
                              ("page_on", "pagedown", 1, "on")):
        yield Action(id_, (key,), f"Page {way}", f"Move the crosshair {way} by {PAGE}.",
                     PLACE, arrow("main", by * PAGE))
    yield Action("find", ("slash",), "Find", "Find a token; an empty answer finds the next one.",
                 PLACE, deeds.find_token, weight=15)


def _view() -> Iterable[Action]:
    yield Action("diff", ("d",), "Diff",
                 "Cached value → recomputed → absolute → relative difference.", VIEW,
                 changed(moves.next_view, lambda c: f"showing {c.shows}"),
                 reasons.needs_lane, weight=11)
    yield Action("largest", ("D",), "Largest diff", "Jump to the largest difference of the run.",
                 VIEW, jumps.jump_to_difference, reasons.needs_lane, weight=12)
    yield Action("lanes", ("v",), "Lanes",
                 "Choose the lanes that are compared: cached, recomputed, referee.", VIEW,
                 deeds.other_lanes, reasons.needs_lanes)
    yield Action("kept", ("a",), "Attended/kept",
                 "K and V as attended to, or as the cache keeps them: latents, a window.", VIEW,
                 deeds.toggle_kept)
    yield Action("numbers", ("t",), "Numbers",
                 "Switch between map and numbers; in the grid, show another measure.", VIEW,
                 deeds.toggle_numbers, weight=16)
    yield Action("palette", ("m",), "Colours", "Next palette.", VIEW,
                 changed(deeds.next_palette, lambda c: f"colours: {PALETTES[c.palette].name}"),
                 weight=18)
    yield Action("scale", ("M",), "Scale", "Scale of the colours: lin, log, percentile.", VIEW,
                 changed(moves.next_scale, lambda c: f"scale: {c.scale.value}"), weight=19)
    for id_, keys, by, title in (("zoom_in", ("plus", "equals_sign"), 1, "Zoom in"),
                                 ("zoom_out", ("minus",), -1, "Zoom out")):
        yield Action(id_, keys, title, f"{title}, around the crosshair.", VIEW,
                     deeds.zoom_by(by), reasons.at_zoom(by))
    yield Action("zoom_fit", ("0",), "Fit", "Show all of it.", VIEW,
                 changed(lambda c: replace(c, zoom=0), lambda _: "all of it"), reasons.at_zoom(-1))
    yield Action("maximise", ("z",), "Zoom pane", "Show the focused pane alone.", VIEW,
                 deeds.maximise, reasons.ok, weight=14)
    yield Action("back", ("escape",), "Back", "Undo maximising; stop playing.", VIEW,
                 deeds.back, reasons.not_back)


def _run() -> Iterable[Action]:
    yield Action("run", ("r",), "Run", "Let the recorder go on.", RUN, deeds.run_on,
                 reasons.needs_waiting, weight=3)
    yield Action("stop", ("x",), "Stop", "End the recording after the step under way.", RUN,
                 deeds.stop_recorder, reasons.needs_recorder, weight=3)
    yield Action("choose", (), "Choose a token",
                 "Go on with another token than the model's choice.", RUN,
                 deeds.choose_token, reasons.needs_pause)
    yield Action("log", ("o",), "Log", "What the recording process printed.", RUN,
                 _open("log"), reasons.ok)


def _screen() -> Iterable[Action]:
    yield Action("copy", ("y",), "Copy", "Copy the value under the crosshair.", SCREEN,
                 deeds.copy_value, weight=17)
    yield Action("copy_code", ("Y",), "Copy code", "Copy Python that reads the same value.",
                 SCREEN, deeds.copy_expression)
    yield Action("export", ("e",), "Export", "Write a picture of the screen (SVG) to a file.",
                 SCREEN, lambda desk: desk.stage.export(), reasons.ok)
    yield Action("findings", ("f",), "Findings",
                 "Whether the lanes are equal, and everything that was found.", SCREEN,
                 _open("findings"), weight=12)
    yield Action("branches", ("w",), "Branches",
                 "Which way the sequences went: where they part, what was given up.", SCREEN,
                 _open("branches"))
    yield Action("memory", ("u",), "Memory",
                 "Memory use of the cache: by layer, over the steps, what its shape saves.", SCREEN,
                 _open("memory"))
    yield Action("code", ("i",), "Code",
                 "Implementation: the layer's own code, with the shapes of this step.", SCREEN,
                 _open("code"))
    yield Action("next_pane", ("tab",), "Next pane", "Give the arrows to the next pane.", SCREEN,
                 deeds.cycle_focus(1), reasons.ok)
    yield Action("previous_pane", ("shift+tab",), "Previous pane",
                 "Give the arrows to the previous pane.", SCREEN, deeds.cycle_focus(-1), reasons.ok)
    for index, name in enumerate(PANES):
        title = TRAITS[name].title
        yield Action(f"pane_{index + 1}", (str(index + 1),), title, f"Show or focus {title}.",
                     SCREEN, deeds.show_pane(index), reasons.ok)
    yield Action("help", ("question_mark",), "Help", "All keys.", SCREEN, _open("help"), reasons.ok,
                 weight=22)
    yield Action("commands", ("colon", "ctrl+p"), "Palette", "Find a command by its name.", SCREEN,
                 _open("palette"), reasons.ok)
    yield Action("quit", ("q",), "Quit", "Quit; a live recording is ended in good order.", SCREEN,
                 _open("quit"), reasons.ok, weight=23)
# fmt: on


def _way(by: int) -> str:
    return "next" if by > 0 else "previous"


ACTIONS: tuple[Action, ...] = (*_time(), *_place(), *_view(), *_run(), *_screen())
BY_ID = {action.id: action for action in ACTIONS}


def footer(desk: Desk) -> list[Action]:
    """What the footer shows, most useful first; the recorder's keys only while there is one."""
    found = [
        action
        for action in ACTIONS
        if action.weight and (action.group != RUN or desk.recording.live)
    ]
    return sorted(found, key=lambda action: action.weight)
