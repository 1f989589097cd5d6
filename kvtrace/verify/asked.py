"""`kvtrace.check` and `kvtrace.diff`, of models and of recorded runs; those need no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from kvtrace.errors import UsageError
from kvtrace.files import open_trace
from kvtrace.files.reading.stored import held
from kvtrace.trace import Trace

if TYPE_CHECKING:
    from torch import nn

    from kvtrace.analysis.checks.report import Report
    from kvtrace.analysis.two_runs.diff import Diff
    from kvtrace.verify.prompts import Prompts

Recorded = Trace | str | PathLike[str]
"""A trace, or the path of one."""


def check(
    model: nn.Module | Recorded,
    prompts: Prompts | None = None,
    *,
    tokenizer: object = None,
    new_tokens: int = 16,
    ways: Sequence[str] | None = None,
    run: Callable[[], object] | None = None,
    keep: str | Path | None = None,
) -> Report:
    """Hold what the cache gave against a forward without it, and name the difference.

    A trace is judged as it is. A model decodes every prompt, then is driven in the ways in which
    caches break: another prompt, the prompt in chunks, a left-padded batch, beams, as far as it
    offers them.

    Args:
        model: Any causal language model that caches, which is left as it is; or a trace, or its
            path, and nothing else.
        prompts: Text, token ids, or a tensor of ids; one or several.
        tokenizer: For prompts of text.
        new_tokens: Tokens to decode for each prompt.
        ways: What else to try, of "again", "chunks", "padded", "beams" and "own"; by default
            all. What the model is asked for by name it is taken to be written for.
        run: Drives the model itself, in place of prompts: a function without arguments.
        keep: Folder in which the traces stay; by default they go.

    Returns:
        A report; `print` it. `report.ok` is true if the lanes are equal within rounding.

    Raises:
        UsageError: An argument is wrong.
        TraceError: It is no trace, or nothing of it can be read.
    """
    if isinstance(model, (Trace, str, PathLike)):
        from kvtrace.analysis.checks import verdict

        if prompts is not None or run is not None:
            raise UsageError(
                f"check: found {type(model).__name__} with a prompt or run=, expected a "
                "torch.nn.Module; a trace is given alone"
            )
        return verdict.check(held(_opened(model)))
    from kvtrace.verify import api

    return api.check(
        model,
        prompts,
        tokenizer=tokenizer,
        new_tokens=new_tokens,
        ways=ways,
        run=run,
        keep=keep,
    )


def diff(old: Recorded, new: Recorded) -> Diff:
    """Two runs of one model: where they part first, and by how much.

    Args:
        old: Taken as right: the run before the change, or its path.
        new: The run that may differ.

    Returns:
        What was found; `print` it. `diff.ok` is true if the runs are equal within rounding.

    Raises:
        TraceError: One is no trace, or nothing of it can be read.
    """
    from kvtrace.analysis.two_runs import diff as two_runs

    return two_runs.diff(_opened(old), _opened(new))


def _opened(recorded: Recorded) -> Trace:
    return recorded if isinstance(recorded, Trace) else open_trace(Path(recorded))
