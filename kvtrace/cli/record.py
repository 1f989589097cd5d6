"""`kvtrace record`: record a run to a file, without a screen."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvtrace.cli.shared import options, outputs
from kvtrace.cli.shared.grammar import Verb
from kvtrace.cli.shared.options import MODEL_HELP
from kvtrace.errors import WriteError
from kvtrace.paths import is_file
from kvtrace.text import safe
from kvtrace.units import byte_size


def run(values: argparse.Namespace) -> int:
    """Record; print where it is."""
    model, prompt = options.model_and_prompt(values, verb="record")
    output = (
        outputs.beside(model)
        if values.output is None
        else outputs.chosen(values.output, force=values.force)
    )
    request = options.request(values, model, prompt, output)
    from kvtrace.cli.shared.follow import follow, size_of

    ending = follow(request, debug=values.debug)
    if not is_file(Path(ending.path)):
        raise WriteError(
            f"{safe(ending.path)}: deleted or renamed while it was recorded, so it is not there; "
            "record again"
        )
    size = byte_size(size_of(ending.path))
    why = f", {safe(ending.text)}" if ending.text else ""
    print(f"{safe(ending.path)}: {size}, ended: {safe(ending.reason)}{why}")
    return 0


VERB = Verb(
    name="record",
    usage=options.USAGE,
    summary=f"Record a run to a file, without a screen.\n\n{MODEL_HELP}\n\n"
    "Without -o the trace is written to the current directory, named after the model.",
    examples=(
        ('kvtrace record gpt2 "hello" -o a.kvt', "32 tokens after hello"),
        ("kvtrace record demo -n 8 --recompute each", "compare and time every step"),
        ("kvtrace record ./my-model --prompt-file story.txt", "a local model, a long prompt"),
        ('kvtrace record my.py:make "hi" --temperature 0.8 --seed 1', "your own model, sampled"),
    ),
    arguments=options.add,
    run=run,
)
