"""Whether every weight of the model came from its files.

A layer whose weights are missing is filled with random numbers by transformers, and the text
that comes out looks only a little odd: so it is refused, or said on every screen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kvtrace.errors import ModelError
from kvtrace.text import safe


def check_complete(report: Mapping[str, Iterable[object]], allowed: bool) -> str:
    """Judge the loading report of `from_pretrained(..., output_loading_info=True)`.

    Args:
        report: Its second result.
        allowed: The user said that missing weights are fine.

    Returns:
        A banner for every viewer; empty when nothing is missing.

    Raises:
        ModelError: Weights are missing or of another shape, and that is not allowed.
    """
    missing = sorted(map(_name, report.get("missing_keys", ())))
    other_shape = sorted(map(_shaped, report.get("mismatched_keys", ())))
    unexpected = sorted(map(_name, report.get("unexpected_keys", ())))
    faults = [safe(str(each)) for each in report.get("error_msgs", ())]
    if not missing and not other_shape and not faults:
        return ""
    parts = []
    if missing:
        parts.append(f"{len(missing)} weights are missing, such as {safe(missing[0], 80)}")
    if other_shape:
        parts.append(f"{len(other_shape)} have another shape, such as {safe(other_shape[0], 160)}")
    if faults:
        parts.append(faults[0])
    told = "; ".join(parts)
    if allowed:
        return f"{told}: random numbers stand in their place"
    hint = ""
    if missing and unexpected:
        hint = f" (the files hold {safe(unexpected[0], 80)}, which the model does not know)"
    raise ModelError(
        f"weight files: {told}{hint}; use the matching config.json, or pass --allow-missing to "
        "go on with random numbers in their place"
    )


def _name(entry: object) -> str:
    """The name in an entry, which is a name or a tuple that starts with one."""
    return str(entry[0]) if isinstance(entry, tuple) and entry else str(entry)


def _shaped(entry: object) -> str:
    """The name in an entry, with the two shapes that do not agree."""
    if not isinstance(entry, tuple) or len(entry) != 3:
        return _name(entry)
    held, expected = ([*shape] if isinstance(shape, Sequence) else shape for shape in entry[1:])
    return f"{entry[0]} ({held} in the files, {expected} by config.json)"
