"""`kvtrace open`: a trace in the screen; without a terminal, its summary."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from kvtrace.cli.shared import terminal
from kvtrace.cli.shared.grammar import Verb

if TYPE_CHECKING:
    import argparse

    from kvtrace.cli.show.pick import Place, Wish
    from kvtrace.trace import Trace


def run(values: argparse.Namespace) -> int:
    """Show it; 4 when something of the trace is missing."""
    # nothing that is loaded now becomes garbage; the screen collects after its first picture
    gc.disable()
    # numpy comes up sooner without threads for products that a screen never makes
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if not values.at:
        return show_trace(values.file, mouse=not values.no_mouse)
    from kvtrace.cli.show.pick import parse

    return show_trace(values.file, parse(values.at), mouse=not values.no_mouse)


def show_trace(path: Path, wish: Wish | None = None, *, mouse: bool = True) -> int:
    """Open a file on whatever there is to show it on."""
    from kvtrace.files import open_trace

    trace = open_trace(path)
    asked = None if wish is None else _place(trace, wish)
    if not terminal.can_draw():
        return _print(trace, asked)
    from kvtrace_tui.app import run as run_screen

    code = run_screen(lambda: trace, at=asked, mouse=mouse)
    from kvtrace.cli.show import exit_code

    return code or exit_code(trace)


def _place(trace: Trace, wish: Wish) -> Place | None:
    from kvtrace.cli.show.pick import place

    return place(trace, wish) if wish.particular else None


def _print(trace: Trace, asked: Place | None) -> int:
    from kvtrace.cli.show import exit_code, place_lines, text
    from kvtrace.cli.show.pick import default_place

    lines = text.whole(trace, list(trace.numbers))
    place = asked or default_place(trace)
    if place is not None:
        lines += place_lines(trace, place, strict=asked is not None)
    print("\n".join(lines))
    return exit_code(trace)


def _arguments(parser: argparse.ArgumentParser) -> None:
    from kvtrace.cli.shared.parser import named

    parser.add_argument("file", metavar="FILE", type=named, help="a trace (.kvt)")
    parser.add_argument(
        "--at",
        metavar="STEP/LAYER/HEAD/TENSOR",
        help="where to look first, such as 7/3/0/keys; a fifth number is a row of the batch",
    )
    parser.add_argument("--no-mouse", action="store_true", help="leave the mouse to the terminal")


def _lone(word: str) -> argparse.Namespace:
    """The first picture does not wait for a parser where there is only a file."""
    values = SimpleNamespace(file=Path(word), at=None, no_mouse=False, debug=False, after=[])
    return cast("argparse.Namespace", values)


VERB = Verb(
    name="open",
    usage="FILE [--at STEP/LAYER/HEAD/TENSOR] [--no-mouse]",
    summary="Open a trace in the screen; a trace that is still being written is followed. Needs no "
    "torch.\nExit code 4: it was read but is incomplete.",
    examples=(
        ("kvtrace open a.kvt", "from its first step"),
        ("kvtrace open a.kvt --at 7/3/0", "at step 7, layer 3, head 0"),
    ),
    arguments=_arguments,
    run=run,
    lone=_lone,
)
