"""`python -m sweep.run`: every causal-LM type of transformers, in processes of their own.

Rows are kept in a file as they come, so that an interrupted sweep goes on where it was; a type
whose process dies or hangs has that as its row. At the end the table is written.
"""

from __future__ import annotations

import argparse
import json
import selectors
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue

from builders.tiny_models import causal_lm_types
from sweep.examine import Row
from sweep.table import table

TESTS = Path(__file__).parents[1]
PATIENCE_S = 180


def main():
    options = _options()
    rows = {} if options.fresh or options.types else _kept(options.kept)
    waiting = SimpleQueue()
    for one in options.types or causal_lm_types():
        if one not in rows:
            waiting.put(one)
    options.kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:

        def done(row):
            rows[row["type"]] = row
            print(f"{len(rows)}: {Row(**row)}", file=sys.stderr)
            if not options.types:
                lines = [json.dumps(one) + "\n" for one in rows.values()]
                options.kept.write_text("".join(lines), encoding="utf-8")

        with ThreadPoolExecutor(options.workers) as pool:
            for one in [pool.submit(_work, waiting, folder, done) for _ in range(options.workers)]:
                one.result()
    known = [Row(**rows[one]) for one in sorted(rows)]
    if options.output is not None:
        options.output.write_text(table(known), encoding="utf-8")
    if not options.types:
        options.kept.unlink()
    traced = sum(row.traced for row in known)
    print(f"{traced} of {len(known)} types are traced completely")
    return 0 if traced >= options.at_least else 1


def _options():
    parser = argparse.ArgumentParser(prog="python -m sweep.run", description=__doc__)
    parser.add_argument("types", nargs="*", help="only these, nothing kept; by default all")
    parser.add_argument("--kept", type=Path, default=TESTS.parent / "build" / "coverage.jsonl")
    parser.add_argument("--output", type=Path, help="the table; by default none is written")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are kept")
    parser.add_argument("--at-least", type=int, default=0, help="fail when fewer are traced")
    return parser.parse_args()


def _kept(path):
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return {row["type"]: row for row in rows}


def _work(waiting, folder, done):
    """Types from the queue to one process, and to a new one when that dies."""
    worker = None
    try:
        while True:
            try:
                name = waiting.get_nowait()
            except Empty:
                return
            if worker is None or worker.poll() is not None:
                worker = _worker(folder)
            row = _asked(worker, name)
            if row is None:
                worker.kill()
                row = {"type": name, "fault": f"its process died, or took over {PATIENCE_S} s"}
            done(row)
    finally:
        if worker is not None:
            worker.kill()
            worker.wait()


def _worker(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "sweep.work", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=TESTS,
    )


def _asked(worker, name):
    """The row of one type; None if there is no answer."""
    try:
        worker.stdin.write(name + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return None
    with selectors.DefaultSelector() as ready:
        ready.register(worker.stdout, selectors.EVENT_READ)
        if not ready.select(PATIENCE_S):
            return None
    line = worker.stdout.readline()
    return json.loads(line) if line.endswith("\n") else None


if __name__ == "__main__":
    sys.exit(main())
