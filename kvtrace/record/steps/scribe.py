"""Writes steps that waited, those together that were kept back together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Protocol

from msgspec.structs import replace

from kvtrace.errors import KvtraceError, RecordError
from kvtrace.files import StepRows
from kvtrace.record.steps.backlog import Waiting
from kvtrace.record.steps.lineage import Tokens
from kvtrace.record.steps.steady import WaitingStep, work_out
from kvtrace.record.steps.texts import Texts
from kvtrace.record.steps.top import TopReader
from kvtrace.text import safe
from kvtrace.trace import Ending, Meta, Note, SiteStep, Step, TopLogits


class Sink(Protocol):
    """Takes in a trace; a `TraceWriter` is one."""

    def append(self, step: Step, rows: StepRows) -> None:
        """A step with its rows."""

    def extend(self, meta: Meta) -> None:
        """A META with more sites or cache layers."""

    def note(self, note: Note) -> None:
        """A note."""

    def end(self, ending: Ending) -> None:
        """Why it ended."""


class Scribe:
    """Writes steps into a sink.

    Attributes:
        failure: Why nothing is written any more.
        top: Reads the highest logits.
    """

    def __init__(self, sink: Sink, texts: Texts, on_step: Callable[[Step], None] | None) -> None:
        """Nothing is written.

        Args:
            sink: Takes them in.
            texts: Text of token ids.
            on_step: Told of each step that was written.
        """
        self.failure: KvtraceError | None = None
        self.top = TopReader()
        self._sink = sink
        self._texts = texts
        self._on_step = on_step

    def fail(self, number: int, error: Exception) -> None:
        """The run is not ours to break: the recording ends, the model goes on."""
        self.failure = RecordError(
            f"step {number}: {type(error).__name__}: {safe(str(error), 200)}; "
            "what was recorded so far is kept. Please report this."
        )
        self.failure.__cause__ = error

    def write(self, waiting: Sequence[Waiting]) -> None:
        """Write steps, those together that were kept back together."""
        start = 0
        while start < len(waiting) and self.failure is None:
            first, end = waiting[start].kept, start + 1
            if first is None:
                step = waiting[start].step
                self._append(waiting[start], step.top, step.sites)
            else:
                kept = [first]
                while end < len(waiting) and (one := waiting[end].kept) and one.goes_with(first):
                    kept.append(one)
                    end += 1
                self._together(waiting[start:end], kept)
            start = end

    def _together(self, waiting: Sequence[Waiting], kept: Sequence[WaitingStep]) -> None:
        """Write steps that are like each other."""
        start = perf_counter_ns()
        try:
            worked = work_out(kept, self.top)
        except Exception as error:
            self.fail(waiting[0].step.number, error)
            return
        each = (perf_counter_ns() - start) // len(kept)
        for one, found in zip(waiting, worked, strict=True):
            one.rows, one.spent_ns = found.rows, one.spent_ns + each
            self._append(one, found.top, found.sites)

    def _append(
        self, waiting: Waiting, top: tuple[TopLogits, ...], sites: tuple[SiteStep, ...]
    ) -> None:
        """Write one step, whose highest logits and sites are these."""
        step, chosen, texts = waiting.step, waiting.told, self._texts
        if self.failure is not None or waiting.rows is None:
            return
        said = texts.of(_ids(step.tokens, top))
        if chosen is None or len(chosen) != step.num_sequences:
            chosen = step.chosen
        else:
            more = [token for token in chosen if token is not None]
            said = {**said, **texts.of(more)}
        spent, ours = waiting.took.ns(), waiting.spent_ns
        step = replace(
            step,
            chosen=chosen,
            top=top,
            sites=sites,
            texts=said,
            elapsed_ns=spent,
            recorder_ns=ours,
        )
        try:
            self._sink.append(step, waiting.rows)
        except KvtraceError as error:
            self.failure = error
            return
        if self._on_step is not None:
            self._on_step(step)


def _ids(tokens: Tokens, top: tuple[TopLogits, ...]) -> list[int]:
    """All token ids a step names."""
    found = [token for row in tokens for token in row]
    for one in top:
        found += one.ids
    return found
