"""A recording under way: what a watched model does becomes a trace in a file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Protocol

from msgspec.structs import replace
from torch import nn

from kvtrace.errors import KvtraceError, WriteError
from kvtrace.files.writer import TraceWriter
from kvtrace.record.capture.forward import Beginning, Forward
from kvtrace.record.capture.inner import listen_inside
from kvtrace.record.capture.replaced.choices import Noted
from kvtrace.record.capture.replaced.generate import Generation, follow_generate
from kvtrace.record.capture.running import passes
from kvtrace.record.capture.watch import Watch
from kvtrace.record.card import card
from kvtrace.record.lanes import LaneOptions, Lanes
from kvtrace.record.lanes.passes.recompute import Recomputer
from kvtrace.record.lanes.sink import LaneSink
from kvtrace.record.modes import unseen_by_modes
from kvtrace.record.processes.companions import Companions
from kvtrace.record.processes.due import Due
from kvtrace.record.steps.lineage import slides
from kvtrace.record.steps.recorder import Options, Recorder
from kvtrace.record.steps.scribe import Sink
from kvtrace.record.undecided import Undecided
from kvtrace.text import said_by
from kvtrace.trace import STOPPED, Ending, Meta, Note, Step


class Writer(Sink, LaneSink, Protocol):
    """Takes in a trace and the comparisons; a `TraceWriter` is one."""

    def close(self) -> None:
        """Nothing more comes."""


class Recording:
    """A recording under way: a context manager.

    Attributes:
        path: The trace file.
        recorder: Turns forwards into steps.
        num_texts: Prompts: the different sequences of steps that continued no other.
        said: Sentences that the trace is to say of the recording, besides its own.
        failure: What ended it early; a warning, too, where nobody else says it.
        undecided: Knows which forwards are steps.
        beside: Begins to take what is no call of the model as its steps; returns how to stop.
    """

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        meta: Meta,
        options: Options,
        *,
        lanes: LaneOptions,
        force: bool,
        writer: Writer | None = None,
    ) -> None:
        """Nothing happens before `with`; without a writer, it makes the file itself."""
        self.path = path
        self.num_texts = 0
        self._tokens: tuple[tuple[int, ...], ...] = ()
        self.said: list[str] = []
        self.beside: Callable[[Recording, nn.Module], Callable[[], None]] | None = None
        self.failure: KvtraceError | None = None
        self._lanes = Lanes(model, path, lanes, self.unwatched)
        self.undecided = Undecided(self._keep, self._leave)
        self._on_step = options.on_step
        # somebody who is told of each step waits for it
        options.patient = options.on_step is None and lanes.mode != "each"
        options.on_step = self._written
        if lanes.mode != "off":
            options.on_forward = self._lanes.forward
        self._model = model
        self._meta = meta
        self._options = options
        self._force = force
        self._given = writer
        self._writer: Writer | None = None
        self._watch: Watch | None = None
        self._unfollow: Callable[[], None] | None = None
        self._undo: list[Callable[[], None]] = []
        self._parts: set[int] = set()
        self._ending: Ending | None = None
        self._due = Due(None)
        self.recorder: Recorder | None = None

    def __enter__(self) -> Recording:
        """Create the file, watch the model.

        Raises:
            OutputExistsError: The file exists, or can't be created.
        """
        self._writer = self._given
        if self._writer is None:
            self._writer = TraceWriter(self.path, self._meta, force=self._force)
        try:
            rank = None if self._lanes.options.mode == "off" else self._meta.rank
            if rank is not None:
                self._due = Due(Companions(self.path, rank))
            with unseen_by_modes():
                self._start(self._writer)
                if self._given is None and rank is None:
                    self._undo.append(listen_inside(self._model, self._inner))
                    if self.beside is not None:
                        self._undo.append(self.beside(self, self._model))
        except BaseException:
            self._close(Ending("error", "the recording could not begin"))
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ending = self._ending or Ending("done")
        if error is not None:
            text = said_by(error, 500)
            interrupted = isinstance(error, KeyboardInterrupt)
            ending = Ending("stopped", text) if interrupted else Ending("error", text)
        self._close(ending)

    def _start(self, writer: Writer) -> Watch:
        """Watch the model."""
        recorder = self.recorder = Recorder(self._model, writer, self._meta, self._options)
        watch = self._watch = Watch(
            self._model,
            self._forward,
            on_begin=self._begin,
            on_failure=recorder.failed,
            on_chosen=recorder.told,
            choosing=None if self._lanes.options.mode == "off" else Noted,
        )
        watch.__enter__()
        self._unfollow = follow_generate(self._model, self._generation)
        return watch

    def _inner(self, part: nn.Module, given: Mapping[str, object] | None) -> None:
        """A part of the model is called: in its place, if the model itself never was."""
        watch, recorder, writer = self._watch, self.recorder, self._writer
        if watch is None or recorder is None or writer is None or part is self._model:
            return
        if watch.paused or recorder.paused or passes() or watch.turns.are_others():
            return
        name = f"{type(part).__name__}, a part of {type(self._model).__name__}"
        if self.steps or self.undecided.waits:
            self.take_in(part)
            if given is not None:
                watch.begin_step(given)
            return
        self.said.append(f"the model here is {name}: it was called, not the whole")
        self._stop_watching()
        self._model = part
        self._lanes = Lanes(part, self.path, self._lanes.options, self.unwatched)
        if self._lanes.options.mode != "off":
            self._options.on_forward = self._lanes.forward
        known = self._meta.model
        self._meta = replace(self._meta, model=replace(card(part), name=known.name))
        writer.extend(self._meta)
        watch = self._start(writer)
        if given is not None:
            watch.begin_step(given)

    def take_in(self, part: nn.Module) -> None:
        """A part of the model is called by itself, too: that goes on with what the model did."""
        if self._watch is not None and id(part) not in self._parts:
            self._parts.add(id(part))
            self._watch.hook("model", part)

    @property
    def steps(self) -> int:
        """Forwards recorded so far."""
        return 0 if self.recorder is None else self.recorder.num_steps

    def stop(self) -> None:
        """End the recording now; the model goes on unwatched. Safe to call twice."""
        self._close(self._ending or Ending("stopped"))

    def drop(self) -> None:
        """End it, with nothing more in its file."""
        self.undecided.waits = None
        self._lanes = Lanes(self._model, self.path, LaneOptions("off"))
        self._close(Ending("stopped"))

    def end_with(self, ending: Ending) -> None:
        """Say why it ended, to be written at the exit."""
        self._ending = ending

    def choose(self, token: int) -> None:
        """The token chosen after the last forward of one sequence."""
        if self.recorder is not None:
            self.recorder.choose((token,))

    def move(self, path: Path) -> None:
        """The file is made now, there."""
        self.path = self._lanes.path = path

    def _begin(self, beginning: Beginning) -> None:
        """A forward is about to run."""
        recorder = self.recorder
        if recorder is not None and recorder.failure is None and not recorder.paused:
            self.undecided.settle(keep=True)
            self._lanes.begin(beginning)
            recorder.begin(beginning)

    def _forward(self, forward: Forward) -> None:
        """A forward is over."""
        recorder = self.recorder
        if recorder is None or recorder.paused:
            return
        self._lanes.over()
        undecided = self.undecided
        if undecided.gate is None or undecided.is_step(forward, undecided.gate):
            recorder.forward(forward)
        elif undecided.waits is not None:
            recorder.waits(forward)
        else:
            recorder.failed()

    def _keep(self, forward: Forward) -> None:
        """A forward that waited is a step."""
        if self.recorder is not None:
            self.recorder.forward(forward)

    def _leave(self) -> None:
        """A forward is none."""
        self._lanes.forget()
        if self.recorder is not None:
            self.recorder.waits(None)

    @property
    def again(self) -> Recomputer | None:
        """How lanes compute tokens again; None: none are computed."""
        return None if self._lanes.options.mode == "off" else self._lanes.again

    @property
    def watch(self) -> Watch | None:
        """What watches the model; None before and after."""
        return self._watch

    def compare_so_far(self) -> None:
        """The weights are about to change: compute the other lanes of what there is now."""
        recorder, writer = self.recorder, self._writer
        if recorder is None or writer is None or recorder.failure is not None:
            return
        recorder.flush()
        self._due.so_far(self._lanes, recorder, writer)

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Lanes run the model too; what they do is no step of the recording."""
        watch, recorder = self._watch, self.recorder
        before = recorder.paused if recorder is not None else False
        if recorder is not None:
            recorder.paused = True
        try:
            with nullcontext() if watch is None else watch.unwatched():
                yield
        finally:
            if recorder is not None:
                recorder.paused = before

    def _written(self, step: Step) -> None:
        """A step is in the file; it is told before the pass beside it, which may take long."""
        if step.parent is None and not slides(step.tokens, self._tokens):
            self.num_texts += len(set(step.tokens)) or 1  # beams and samples begin with one text
        self._tokens = step.tokens
        if self._on_step is not None:
            self._on_step(step)
        recorder, writer = self.recorder, self._writer
        if recorder is None or writer is None:
            return
        each = self._due.step(self._lanes, step, recorder, writer)
        if each and self._on_step is not None:
            self._on_step(step)

    def _generation(self, run: Generation) -> None:
        """`generate` begins, or has ended; what other threads generate is not recorded."""
        recorder, watch = self.recorder, self._watch
        if recorder is None or watch is None or watch.is_fork or watch.turns.are_others():
            return
        recorder.phases.prompt_rows = None if run.over else run.prompt_rows
        self.said += [text for text in run.says if text not in self.said]
        if run.over:
            recorder.flush(run.last_tokens(recorder.last))
            if run.ending is not None:
                self._ending = run.ending

    def _stop_watching(self) -> Watch | None:
        """The model is called unwatched from now on; what watched it."""
        if self._unfollow is not None:
            self._unfollow()
            self._unfollow = None
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.__exit__(None, None, None)
        return watch

    def _close(self, ending: Ending) -> None:
        while self._undo:
            self._undo.pop()()
        watch = self._stop_watching()
        writer = self._writer
        if writer is None or (watch is not None and watch.is_fork):
            return
        failure: KvtraceError | None = None
        try:
            with unseen_by_modes():
                failure = self._last_words(writer, watch, ending)
        except WriteError as error:
            failure = error
        finally:
            self._writer = None
            if self.recorder is not None:
                self.recorder.close()
            try:
                writer.close()
            except WriteError as error:
                failure = failure or error
        self.failure = failure
        if failure is not None and self._given is None:
            warnings.warn(f"{STOPPED} {failure}", RuntimeWarning, stacklevel=3)

    def _last_words(
        self, writer: Writer, watch: Watch | None, ending: Ending
    ) -> KvtraceError | None:
        """The step that waits, what was not seen, the other lanes, and why it ended."""
        recorder = self.recorder
        if recorder is not None:
            self.undecided.settle(keep=True)
            recorder.flush()
            if watch is not None:
                recorder.tell(watch.unseen, (*watch.notes, *self.said))
            if recorder.failure is not None:
                self._due.failed()
                if not isinstance(recorder.failure, WriteError):
                    writer.note(Note("note", f"{STOPPED} {recorder.failure}"))
                return recorder.failure
            self._due.at_end(self._lanes, recorder, writer, ending)
        writer.end(ending)
        return None
