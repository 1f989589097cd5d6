"""`kvtrace merge`: join the traces of the ranks of one run to the trace of one model."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvtrace import units
from kvtrace.cli.shared import losses, outputs
from kvtrace.cli.shared.grammar import Verb
from kvtrace.cli.shared.parser import named
from kvtrace.errors import UsageError
from kvtrace.paths import is_folder
from kvtrace.text import safe


def run(values: argparse.Namespace) -> int:
    """Write the whole; 4 when a rank or a step is missing."""
    from kvtrace.files.ranks import merge, rank_files

    given: list[Path] = values.files
    folders = [path for path in given if is_folder(path)]
    if folders and len(given) > 1:
        raise UsageError(
            f"{safe(str(folders[0]))} is a folder; name one folder, or the files of the ranks"
        )
    paths = rank_files(folders[0]) if folders else given
    outputs.chosen(values.output, force=values.force)
    done = merge(paths, values.output, force=values.force)
    files = units.counted(len(paths), "rank")
    print(f"{safe(str(values.output))}: {units.counted(done.steps, 'step')} of {files}")
    return losses.told(done)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        type=named,
        help="the trace of each rank (NAME.rank0.kvt …), or the folder that holds them",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=named, required=True, help="the whole"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


VERB = Verb(
    name="merge",
    usage="FILE… -o OUT [--force]",
    summary="Join what the ranks of a tensor-parallel run recorded, each its own heads, to the "
    "trace of one\nmodel with all heads. Exit code 4: a rank or a step is missing, and is named.\n"
    "`kvtrace open FOLDER` shows the same without writing it.",
    examples=(
        ("kvtrace merge run.rank*.kvt -o run.kvt", "joins all ranks of a run"),
        ("kvtrace merge traces/ -o run.kvt", "the same, of the one run in a folder"),
    ),
    arguments=_arguments,
    run=run,
)
