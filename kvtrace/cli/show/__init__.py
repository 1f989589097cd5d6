"""`kvtrace show`: print what a trace says, as text or JSON: everything the screen says."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtrace.cli.shared.grammar import Verb
from kvtrace.cli.shared.parser import named, natural

if TYPE_CHECKING:
    from kvtrace.cli.show import pick
    from kvtrace.cli.show.plain import Plain
    from kvtrace.trace import Trace


def run(values: argparse.Namespace) -> int:
    """Print it; 4 when something of the trace is missing."""
    from kvtrace.cli.show import pick
    from kvtrace.files import open_trace

    wish = pick.Wish(
        values.step, values.layer, values.head, values.tensor, values.sequence, values.lane
    )
    if values.at:
        wish = wish.over(pick.parse(values.at))
    wanted = pick.step_range(values.steps) if values.steps else None
    trace = open_trace(values.file)
    numbers = [number for number in trace.numbers if wanted is None or number in wanted]
    asked = wish.particular
    place = pick.place(trace, wish) if asked else pick.default_place(trace)
    if values.json:
        told = _json(trace, numbers, place, every=values.numbers, strict=asked)
        print(json.dumps(told, indent=1))
        return exit_code(trace)
    from kvtrace.cli.show import text

    lines = [] if asked and wanted is None else text.whole(trace, numbers)
    if place is not None:
        lines += place_lines(trace, place, every=values.numbers, strict=asked)
    print("\n".join(lines).strip())
    return exit_code(trace)


def exit_code(trace: Trace) -> int:
    """0 for a whole trace, 4 for one that is incomplete or damaged."""
    return 0 if trace.is_whole else 4


def _json(
    trace: Trace, numbers: Sequence[int], place: pick.Place | None, *, every: bool, strict: bool
) -> object:
    from kvtrace.cli.show import facts
    from kvtrace.cli.show.at import at
    from kvtrace.cli.show.at import facts as at_facts

    def here() -> Plain:
        return None if place is None else at_facts(trace, at(trace, place), numbers=every)

    found = here() if strict else facts.readable(here)
    return {**facts.whole(trace, numbers), "at": found}


def place_lines(trace: Trace, place: pick.Place, *, every: bool = False, strict: bool) -> list[str]:
    """One place as text.

    Raises:
        KvtraceError: It can't be read, and `strict` says that it was what was asked for.
    """
    from kvtrace.cli.show.at import at
    from kvtrace.cli.show.place import lines
    from kvtrace.cli.show.text import readable

    def here() -> list[str]:
        return lines(trace, at(trace, place), numbers=every)

    return here() if strict else readable(here)


def _arguments(parser: argparse.ArgumentParser) -> None:
    from kvtrace.cli.show.names import TENSORS

    parser.add_argument("file", metavar="FILE", type=named, help="a trace (.kvt)")
    parser.add_argument("--json", action="store_true", help="as JSON, nothing rounded")
    parser.add_argument("--steps", metavar="A:B", help="only these steps (B excluded)")
    place = parser.add_argument_group("one place")
    place.add_argument(
        "--at", metavar="STEP/LAYER/HEAD/TENSOR", help="as check names it and open takes it"
    )
    place.add_argument("--step", metavar="N", type=natural, help="default: the last one")
    place.add_argument("--layer", metavar="L", type=natural, help="default: the first one")
    place.add_argument("--head", metavar="H", type=natural, help="query head, default 0")
    place.add_argument("--tensor", choices=TENSORS, help="default: all of them")
    place.add_argument("--sequence", metavar="B", type=natural, default=0, help="row of a batch")
    place.add_argument("--lane", metavar="NAME", default="cached", help="cached, recomputed, …")
    place.add_argument("--numbers", action="store_true", help="every element")


VERB = Verb(
    name="show",
    usage="FILE [--json] [--steps A:B] [--at STEP/LAYER/HEAD/TENSOR] [--numbers]",
    summary="Print what a trace says: model, steps, costs, comparison, self-check; and for one "
    "place\nstatistics, where its head looks, and the numbers. Exit code 4: it was read but is "
    "incomplete.",
    examples=(
        ("kvtrace show a.kvt", "everything"),
        ("kvtrace show a.kvt --at 7/3/0", "step 7, layer 3, head 0"),
        ("kvtrace show a.kvt --step 7 --tensor keys --numbers", "every number of K"),
        ("kvtrace show a.kvt --json | jq .steps[7].sentence", "for programs"),
    ),
    arguments=_arguments,
    run=run,
)
