"""Runs every benchmark beside it and writes docs/benchmarks.md; `make bench`.

With names as arguments, only those modules run and the table is only printed.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from datetime import date
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent


def main(names: list[str]) -> int:
    """Run them and print each table; 0 whatever they say: goals are shown, not gated."""
    sys.path.insert(0, str(TESTS))
    table = importlib.import_module("benchmarks.table")
    sections = []
    for module in benchmarks(names):
        if not getattr(module, "possible", lambda: True)():
            print(f"{module.NAME}: not on this machine", file=sys.stderr, flush=True)
            continue
        print(f"{module.NAME} …", file=sys.stderr, flush=True)
        sections.append(table.markdown(module.NAME, module.run()))
        print(sections[-1], flush=True)
    if not names:
        target = ROOT / "docs" / "benchmarks.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text("\n".join([heading(), *sections]), encoding="utf-8")
        print(f"written: {target.relative_to(ROOT)}", file=sys.stderr)
    return 0


def benchmarks(names: list[str]) -> list[ModuleType]:
    """Those of some names, or all: modules beside this one that have a NAME to print."""
    stems = names or sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    modules = [importlib.import_module(f"benchmarks.{stem}") for stem in stems]
    return [module for module in modules if hasattr(module, "NAME")]


def heading() -> str:
    """Date and machine, without which a number says little."""
    return (
        "# Benchmarks\n\n"
        f"Measured on {date.today().isoformat()} with {os.cpu_count()} cores "
        f"({platform.machine()}), Python {platform.python_version()}, by `make bench`. "
        "Ratios come from alternating runs in one process tree; a ratio of 1 is the same cost.\n\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
