"""The screen in a real pseudo-terminal: how soon it shows something, how soon it answers a key."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.table import Row, markdown
from builders import Shape, synthetic_trace
from builders.terminal import Terminal, kvtrace
from builders.written import write_trace

NAME = "The screen"
SIZE = {"columns": 160, "lines": 45}
STARTS = 15
KEYS = 60
REST_S = 0.25
"""Silence after which nothing is left to draw; also between two keys."""
QUIET_S = 0.02
"""Silence that ends a picture: what is calculated when the keys are quiet starts later."""
_MINIMAL = """
from textual.app import App
from textual.widgets import Static
class Minimal(App):
    def compose(self):
        yield Static("minimal content")
Minimal().run()
"""


def run() -> list[Row]:
    """Start and step through a GPT-2-shaped trace."""
    shape = Shape(layers=12, heads=12, kv_heads=12, dim=64, prompt=480, decode=80)
    with tempfile.TemporaryDirectory() as folder:
        path = write_trace(Path(folder) / "gpt2.kvt", synthetic_trace(shape))
        return [*_start_rows(path), *_key_rows(path)]


def _start_rows(path: Path) -> list[Row]:
    """Alternating starts of kvtrace and of the smallest Textual app."""
    ours: list[float] = []
    least: list[float] = []
    minimal = [sys.executable, "-c", _MINIMAL]
    for _ in range(STARTS + 1):
        ours.append(_first_content(lambda: kvtrace("open", path, **SIZE), "K cache"))
        least.append(_first_content(lambda: Terminal(minimal, **SIZE), "minimal content"))
    ours, least = ours[1:], least[1:]
    spread = f"{1e3 * min(ours):.0f} to {1e3 * max(ours):.0f} ms over {STARTS} starts"
    ratio = f"a minimal Textual app takes {1e3 * median(least):.0f} ms"
    return [
        Row("kvtrace open to first content", 1e3 * median(ours), "ms", 250.0, f"{ratio}; {spread}"),
        Row("the same against a minimal Textual app", median(ours) / median(least)),
    ]


def _first_content(start: Callable[[], Terminal], words: str) -> float:
    began = time.perf_counter()
    with start() as terminal:
        while words.encode() not in terminal.output:
            terminal.read(0.002)
        took = time.perf_counter() - began
        terminal.settle()
    return took


def _key_rows(path: Path) -> list[Row]:
    """A key goes in; the last byte of the picture it leads to comes out."""
    rows = []
    with kvtrace("open", path, **SIZE) as terminal:
        terminal.wait_for("recorded")
        terminal.settle(1.0)
        for what, keys, first, goals in (
            # the same key once more is foreseen: its picture was drawn while the keys were quiet
            ("n (next step) again", "n", "", (12.0, 16.0)),
            ("N, n (a step) after another key", "Nn", "hl", (12.0, 16.0)),
            ("] (next layer)", "][", "", (None, None)),
            ("l (crosshair)", "hl", "", (None, None)),
        ):
            pairs = []
            for i in range(KEYS):
                terminal.keys(first[i % len(first)] if first else "")
                pairs.append(_answer(terminal, keys[i % len(keys)]))
            cuts = quantiles([1e3 * frame for frame, _ in pairs], n=20)
            rest = 1e3 * median(everything for _, everything in pairs)
            note = (
                f"{KEYS} presses; the grid's measures follow when the keys are quiet, "
                f"complete after {rest:.0f} ms"
            )
            rows.append(
                Row(f"{what} to the last byte at 160×45, p50", cuts[9], "ms", goals[0], note)
            )
            rows.append(Row(f"{what} to the last byte at 160×45, p95", cuts[18], "ms", goals[1]))
    return rows


def _answer(terminal: Terminal, key: str) -> tuple[float, float]:
    """Seconds from the key to the last byte of the picture, and until there is rest."""
    terminal.settle(REST_S)
    terminal.keys(key)
    began = last = time.perf_counter()
    frame = None
    while (now := time.perf_counter()) - last < REST_S:
        if frame is None and last > began and now - last > QUIET_S:
            frame = last - began
        if terminal.read(0.001):
            last = time.perf_counter()
    return (last - began if frame is None else frame), last - began


def main(arguments: Sequence[str]) -> int:
    """Print the table."""
    print(markdown(NAME, run()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
