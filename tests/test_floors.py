"""The floors, looked at from outside: what importing each one really loads."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "pydantic", "tokenizers", "huggingface_hub"}
DRAWING = {"textual", "rich"}

FLOORS = {
    "kvtrace": HEAVY | DRAWING | {"numpy"},
    "kvtrace.errors": HEAVY | DRAWING | {"numpy"},
    "kvtrace.text": HEAVY | DRAWING | {"numpy"},
    "kvtrace.units": HEAVY | DRAWING | {"numpy"},
    "kvtrace.trace": HEAVY | DRAWING,
    "kvtrace.files": HEAVY | DRAWING,
    "kvtrace.analysis": HEAVY | DRAWING,
    "kvtrace.live.session": HEAVY | DRAWING,
    "kvtrace.cli": HEAVY | DRAWING | {"numpy"},
    "kvtrace.cli.open": HEAVY | DRAWING | {"numpy", "argparse"},
    "kvtrace_tui": HEAVY,
    "kvtrace_tui.app": HEAVY | {"argparse"},
    "kvtrace_fixtures": HEAVY | DRAWING,
    "kvtrace.record": {"textual", "kvtrace_tui"},
    "kvtrace.models": {"textual", "kvtrace_tui"},
}


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", FLOORS)
def test_importing_a_floor_loads_nothing_from_above_it(module):
    assert not loaded_by(module) & FLOORS[module]


def test_what_the_first_picture_does_not_show_is_loaded_after_it():
    loaded = loaded_by("kvtrace_tui.app, kvtrace_tui.panes as panes; next(panes.all_panes())")
    assert {"kvtrace_tui.panes.tensor_map", "kvtrace_tui.panes.timeline"} <= loaded
    assert not loaded & {
        "kvtrace.analysis.branches",
        "kvtrace.analysis.lanes.compare",
        "kvtrace.analysis.rows.changes",
        "kvtrace.analysis.rows.kept",
        "kvtrace_tui.desk.differences",
        "kvtrace_tui.live_run",
        "kvtrace_tui.panes.cost",
        "kvtrace_tui.panes.inspector",
        "kvtrace_tui.screens.checking",
    }
