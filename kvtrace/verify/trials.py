"""Runs plans, each inside a recording of its own, and tells what became of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from msgspec import Struct

from kvtrace.analysis.checks.whole_run.leftover import beyond
from kvtrace.errors import WriteError
from kvtrace.files import open_trace
from kvtrace.record import record
from kvtrace.record.api import Wishes
from kvtrace.record.driving.trying.evidence import reason_of
from kvtrace.text import safe
from kvtrace.trace import ModelCard, Trace
from kvtrace.verify.plans import Plan

_NOT_EMPTIED = (
    "the model still held rows of the prompt before, and has no method that empties its cache, "
    "such as reset_cache()"
)


class Recorded(Struct, frozen=True):
    """One plan that was tried.

    Attributes:
        way, title: Of the plan.
        path: Its trace; None: nothing was recorded.
        trouble: Why not, or what went wrong on the way.
        presumed: Of the plan.
    """

    way: str
    title: str
    path: Path | None
    trouble: str = ""
    presumed: bool = False


def tried(
    plans: Sequence[Plan],
    place: Callable[[str], Path],
    *,
    tokenizer: object,
    card: ModelCard | None = None,
    fresh: Mapping[int, int] | None,
    begin: Callable[[Plan], bool] = lambda plan: True,
) -> Iterator[Recorded]:
    """Try plans one by one.

    The recomputed lane is part of each; the referee is not: the first run has told how exact
    the model is.

    Args:
        plans: In order.
        place: A way to the path of its trace.
        tokenizer: Gives texts of ids.
        card: All that is said of the model.
        fresh: Rows beyond its own that a text began with in the first run.
        begin: Told of each before it is tried; False: no more of them.

    Raises:
        WriteError: A trace can't be written.
    """
    for plan in plans:
        if not begin(plan):
            return
        if plan.drive is None:
            yield Recorded(plan.way, plan.title, None, plan.why_not)
            continue
        path = place(plan.way)
        found = _tried(plan, plan.drive, path, tokenizer, card, fresh or {})
        if found.path is None and plan.otherwise is not None:
            second = _tried(plan, plan.otherwise, path, tokenizer, card, fresh or {})
            found = found if second.path is None else second
        yield found


def _tried(
    plan: Plan,
    drive: Callable[[], object],
    path: Path,
    tokenizer: object,
    card: ModelCard | None,
    fresh: Mapping[int, int],
) -> Recorded:
    wishes: Wishes = {
        "tokenizer": tokenizer,
        "model_card": card,
        "prompt": plan.prompt,
        "keep_rows": True,
        "force": True,
    }
    recording = record(plan.model, path, **wishes)
    trouble = _driven(recording, drive)
    if isinstance(recording.failure, WriteError):
        raise recording.failure
    if not trouble and not recording.steps:  # its forward is not what they call
        path.unlink(missing_ok=True)
        trouble = _driven(record(path, **wishes), drive)
    if trouble or not path.exists():
        path.unlink(missing_ok=True)
        return Recorded(plan.way, plan.title, None, trouble or "its forward was not seen")
    if plan.keeps and _began_with_more(path, fresh):
        path.unlink()
        return Recorded(plan.way, plan.title, None, _NOT_EMPTIED)
    return Recorded(plan.way, plan.title, path, presumed=plan.presumed)


def _driven(recording: AbstractContextManager[object], drive: Callable[[], object]) -> str:
    """What went wrong inside a recording, in code that is not ours; empty: nothing.

    Raises:
        WriteError: A trace can't be written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with recording:
                drive()
        except WriteError:
            raise
        except Exception as error:
            # a model need not be able to do this
            return safe(reason_of(error), 300)
    return ""


def _began_with_more(path: Path, fresh: Mapping[int, int]) -> bool:
    """Whether there were rows before the text that the first one did not begin with."""
    counts = beyond(open_trace(path)).items()
    return any(count > max(0, fresh.get(layer, 0)) for layer, count in counts)


def tokens_of(trace: Trace) -> list[int]:
    """What the first sequence of a run was fed, prompt included, as far as it is known.

    Of an encoder-decoder, what its encoder read.
    """
    out: list[int] = []
    for step in trace:
        if step.parent is None and out:
            break
        row = [token for token in step.tokens[0] if token >= 0] if step.tokens else []
        if len(row) > 1 and row[: len(out)] == out:
            out = row
        else:
            out += row
    return out
