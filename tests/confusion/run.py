"""`python -m confusion.run`: every zoo bug in many variants, the mutants, and the healthy models.

Writes `docs/confusion.md`. Outcomes are kept in a file as they come, so that an interrupted run
goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from msgspec.structs import asdict

from confusion import healthy, mutants, page
from confusion.score import Outcome
from confusion.score import scored as scored_variant
from confusion.variants import variants
from kvtrace_fixtures.zoo.table import catalogue

ROOT = Path(__file__).parents[2]
RAISED = "(raised)"


def jobs(count: int) -> list[tuple[str, str, int]]:
    """(table, name, number) of everything that is run."""
    zoo = [("zoo", name, n) for n in range(count) for name in catalogue()]
    edits = [("mutants", one.name, n) for n, one in enumerate(mutants.mutants())]
    return [*zoo, *edits, *(("healthy", name, 0) for name in healthy.names())]


def work(job: tuple[str, str, int]) -> dict[str, object]:
    """One of them."""
    torch.set_num_threads(1)
    table, name, number = job
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            outcome = _RUN[table](name, number)
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        outcome = Outcome("?", RAISED, None, name, said[:300])
    return {"table": table, "name": name, "number": number, **asdict(outcome)}


def _zoo(name: str, number: int) -> Outcome:
    return scored_variant(variants(catalogue()[name], number + 1)[number])


def _mutant(_: str, number: int) -> Outcome:
    return mutants.scored(mutants.mutants()[number])


def _healthy(name: str, _: int) -> Outcome:
    return healthy.scored(name)


_RUN: dict[str, Callable[[str, int], Outcome]] = {
    "zoo": _zoo,
    "mutants": _mutant,
    "healthy": _healthy,
}


def main() -> int:
    options = _options()
    kept: list[dict[str, object]] = []
    if options.kept.is_file() and not options.fresh:
        kept = [json.loads(line) for line in options.kept.read_text().splitlines()]
    done = {(row["table"], row["name"], row["number"]) for row in kept}
    todo = [job for job in jobs(options.variants) if job not in done]
    todo = [job for job in todo if not options.only or job[0] in options.only]
    options.kept.parent.mkdir(parents=True, exist_ok=True)
    with options.kept.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in kept)
        for row in _done(todo, options.workers):
            kept.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            if row["called"] != row["planted"]:
                print(row["table"], row["what"], row["planted"], "→", row["called"], row["words"])
    before = options.output.read_text(encoding="utf-8") if options.output.is_file() else ""
    whole = options.fresh and not options.only
    options.output.write_text(page.page(kept, before, whole=whole), encoding="utf-8")
    right, every, alarms = page.score(kept)
    print(f"{right} of {every} called by their name, {alarms} false alarms")
    return 0 if right >= options.at_least * every and not alarms else 1


def _done(todo: list[tuple[str, str, int]], workers: int) -> Iterator[dict[str, object]]:
    with ProcessPoolExecutor(workers) as pool:
        for number, row in enumerate(pool.map(work, todo)):
            if number % 20 == 0:
                print(f"{number} of {len(todo)}", file=sys.stderr)
            yield row


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m confusion.run", description=__doc__)
    parser.add_argument("--variants", type=int, default=10, help="of each zoo bug")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="zoo, mutants or healthy; by default all")
    parser.add_argument("--fresh", action="store_true", help="forget what was kept")
    parser.add_argument("--kept", type=Path, default=ROOT / "build" / "confusion.jsonl")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "confusion.md")
    parser.add_argument("--at-least", type=float, default=0.95, help="share for exit code 0")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
