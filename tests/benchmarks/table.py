"""What a benchmark says: rows with a number, its unit and the goal beside it."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Row(Struct, frozen=True):
    """One measured number.

    Attributes:
        what: What was measured, with the sizes that matter.
        value: The number: a median unless `note` says otherwise.
        unit: "×" for ratios, "ms", "MiB" …
        goal: At most this much; None: nothing was promised.
        note: Spread, number of runs, what it was compared with.
    """

    what: str
    value: float
    unit: str = "×"
    goal: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        return None if self.goal is None else self.value <= self.goal


def markdown(title: str, rows: Sequence[Row]) -> str:
    """A section with a table."""
    lines = [f"## {title}", "", "| measured | value | goal | met | note |", "|---|---|---|---|---|"]
    for row in rows:
        goal = "" if row.goal is None else f"≤ {_number(row.goal, row.unit)}"
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        value = _number(row.value, row.unit)
        lines.append(f"| {row.what} | {value} | {goal} | {met} | {row.note} |")
    return "\n".join([*lines, ""])


def _number(value: float, unit: str) -> str:
    digits = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    text = digits.rstrip("0").rstrip(".")
    return f"{text}×" if unit == "×" else f"{text} {unit}"
