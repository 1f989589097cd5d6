"""Runs a script in order to check it, and finds the traces that it left."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def recorded(
    script: Path, arguments: Sequence[str], output: Path, values: argparse.Namespace
) -> tuple[list[Path], str]:
    """Run it; what it prints goes to stderr, so that stdout is the verdict's alone.

    Args:
        script: A Python file; it runs with the user's rights.
        arguments: The script's own.
        output: Where a trace goes of what attends in it.
        values: Options of `kvtrace check`.

    Returns:
        The traces: what kvtrace saw, then those the script recorded itself in the current
        directory; and how it ended, where that was not well.
    """
    before = _traces()
    with tempfile.TemporaryDirectory(prefix="kvtrace-") as folder:
        told = Path(folder) / "traces.json"
        wishes = {
            "output": str(output.resolve()),
            "recompute": values.recompute,
            "cpu": values.cpu,
            "force": values.force,
            "module": False,
            "referee": True,
            "keep_rows": True,
            "list": str(told),
        }
        command = [sys.executable, "-P", "-m", "kvtrace.live.script", json.dumps(wishes)]
        sys.stdout.flush()
        done = subprocess.run([*command, str(script), *arguments], stdout=sys.stderr, check=False)
        seen = [Path(path) for path in json.loads(told.read_text())] if told.exists() else []
    own = [path for path, stamp in _traces().items() if before.get(path) != stamp]
    known = {path.resolve() for path in seen}
    more = [path for path in own if path.resolve() not in known]
    ended = f" ended with exit code {done.returncode}" if done.returncode else ""
    return seen + _not_seen(more, seen), ended


def _not_seen(own: Sequence[Path], seen: Sequence[Path]) -> list[Path]:
    """Traces that a script recorded of runs that kvtrace did not see beside it."""
    runs, known = [_run(path) for path in own], [_run(path) for path in seen]
    return [
        path
        for path, run in zip(own, runs, strict=True)
        if run is None or known.count(run) < runs.count(run)
    ]


def _run(path: Path) -> object:
    """What model was run over which tokens, step by step; None where that can't be read."""
    from kvtrace.errors import KvtraceError
    from kvtrace.files import open_trace

    try:
        trace = open_trace(path)
        return trace.meta.model.class_name, [(step.parent, step.tokens) for step in trace]
    except KvtraceError:
        return None  # the check of it tells why


def _traces() -> dict[Path, int]:
    """Traces in the current directory, with when they were written."""
    return {path: path.stat().st_mtime_ns for path in sorted(Path().glob("*.kvt"))}
