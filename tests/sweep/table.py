"""The rows of a sweep as `docs/coverage.md`."""

from __future__ import annotations

from importlib.metadata import version

import torch

from builders.device import DEVICE
from sweep.examine import NEW, PROMPT, TOLERANCE

LEVELS = {1: "interface", 2: "SDPA", 3: "data flow", 4: "explicit"}


def table(rows):
    """Markdown.

    Args:
        rows: One for each type.
    """
    traced = sum(row.traced for row in rows)
    attending = sum(row.attentions > 0 for row in rows)
    built = sum(row.built for row in rows)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    head = [
        "# What is recorded of each architecture",
        "",
        f"Written by `make coverage-table` with {libraries}, on {_machine()}, "
        "from tiny random models.",
        "",
        f"**{traced} types are traced completely**, of {attending} with attention over the text, "
        f"of {built} that could be built, of {len(rows)} causal-LM types of transformers.",
        "",
        f"Each model reads {PROMPT} tokens and makes {NEW}. *Completely* means: every attention "
        "of every step (counted by a dispatch mode that knows nothing of kvtrace) is in the "
        "trace; tokens and logits are those of the model alone, bit for bit; softmax(…)·v "
        f"calculated from the trace is the output in the trace (error up to {TOLERANCE:g} of "
        "the largest output); every cache layer rebuilt from the trace is, after every step, bit "
        "for bit what the live cache held.",
        "",
        "*error* is that of softmax(…)·v, *lane* the largest relative difference to the tokens "
        "recomputed without a cache. *rows* counts cache layers × sequences × steps held against "
        "the live cache.",
        "",
        "| type | traced | seen by | attentions | cache | rows | error | lane | says |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(_line, rows), ""])


def _line(row):
    seen = ", ".join(LEVELS[level] for level in row.levels)
    says = "; ".join(dict.fromkeys([*([row.fault] if row.fault else []), *row.says]))
    if not row.built:
        says = f"no tiny model could be built: {says}"
    elif not row.attentions and not row.fault:
        says = "; ".join(["no softmax attention over the text", *([says] if says else [])])
    cells = [
        row.type,
        "yes" if row.traced else "no",
        seen or "–",
        f"{row.seen} of {row.attentions}" if row.attentions else "–",
        ", ".join(row.caches) or "–",
        "differ" if row.rows_equal is None else str(row.rows_equal or "–"),
        "–" if row.error is None else f"{row.error:.1e}",
        "–" if row.lane is None else f"{row.lane:.1e}",
        says.replace("|", "\\|").replace("\n", " ") or "–",
    ]
    return "| " + " | ".join(cells) + " |"


def _machine():
    """What the models ran on."""
    return (
        "a CPU" if DEVICE == "cpu" else f"one {torch.get_device_module(DEVICE).get_device_name()}"
    )
