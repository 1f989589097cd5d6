"""`kvtrace recover`: copy what can be read of a damaged or cut trace to a new one."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvtrace import units
from kvtrace.cli.shared import losses, outputs
from kvtrace.cli.shared.grammar import Verb
from kvtrace.cli.shared.parser import named
from kvtrace.text import safe


def run(values: argparse.Namespace) -> int:
    """Write the copy; 4 when something was lost."""
    source: Path = values.file
    from kvtrace.files.recover import recover

    target = values.output or source.parent / f"{source.stem}.recovered.kvt"
    outputs.chosen(target, force=values.force)
    done = recover(source, target, force=values.force)
    print(f"{safe(str(target))}: {units.counted(done.steps, 'step')}")
    return losses.told(done, lead="lost: ")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=named, help="a trace (.kvt)")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=named, help="default: FILE's name with .recovered.kvt"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


VERB = Verb(
    name="recover",
    usage="FILE [-o OUT] [--force]",
    summary="Copy every step that can be read to a new trace. Exit code 0: all of it; 4: something "
    "was\nlost, and is named; 65: nothing could be read. FILE itself is never changed.\n\nOf the "
    "copy, `check` and `diff` tell what was lost, and answer 3 where the verdict rests on it:\na "
    "step, a comparison (`check`), rows (`diff`).",
    examples=(
        ("kvtrace recover a.kvt", "writes a.recovered.kvt"),
        ("kvtrace recover a.kvt -o b.kvt", "writes b.kvt"),
    ),
    arguments=_arguments,
    run=run,
)
