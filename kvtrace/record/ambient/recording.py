"""`with kvtrace.record("run.kvt"):` records whichever models run inside, however they are called.

Each outermost call of a module that is given token ids is a step of that model; the first model
with attention is written to the named file, others to files beside it. Training is told by the
losses and gradients that follow a call, and left out.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from kvtrace.errors import OutputExistsError
from kvtrace.files.writer import TraceWriter
from kvtrace.record.ambient import met, tables
from kvtrace.record.ambient.late import LateWriter, free_path
from kvtrace.record.ambient.met import Met, Models
from kvtrace.record.ambient.outermost import Outermost, Run
from kvtrace.record.ambient.report import ModelReport, Report, of_model
from kvtrace.record.ambient.training import PROVEN, Training
from kvtrace.record.ambient.uncalled import Uncalled
from kvtrace.record.capture.replaced.compiled import eagerly
from kvtrace.record.capture.replaced.generate import meet_generate
from kvtrace.record.capture.tokens.bare_rows import rows_in
from kvtrace.record.capture.tokens.inputs import named, tokens_in
from kvtrace.record.capture.watch import Watch
from kvtrace.record.modes import unseen_by_modes
from kvtrace.record.paged.engine import ENGINE
from kvtrace.record.recording import Recording
from kvtrace.text import message
from kvtrace.trace import Ending, Meta

MODELS = 4
"""Models that are recorded, each in its own file."""

Create = Callable[[Recording, Meta], TraceWriter]
Make = Callable[[nn.Module, Create], tuple[Recording, LateWriter]]
"""(a model, what makes its file) → a recording of it, and what takes in its trace."""

_WHOLE_MODEL = 4
"""Tensors of one module: fewer make an embedding, or a loss, that is given ids too."""


class AmbientRecording:
    """A recording of whatever runs: a context manager.

    Attributes:
        path: Where the first trace goes.
        report: What came of it, once it is over.
    """

    def __init__(self, path: Path, make: Make, *, force: bool) -> None:
        """Nothing happens before `with`.

        Args:
            path: Of the first trace.
            make: Makes the recording of one model.
            force: Replace files that exist.
        """
        self.path = path
        self.report = Report()
        self._make = make
        self._force = force
        self._models = Models()
        self._others: Counter[str] = Counter()
        self._faults: list[str] = []
        self._process = 0
        self._written: list[Met] = []
        self._training = Training(self._models, self._compare_so_far)
        self._outermost = Outermost(self._around, self._steps_of)
        self._uncalled = Uncalled(
            self._models,
            self._outermost,
            self._adopt,
            self._harmless,
            self._is_fork,
            self._training.begins_by_hand,
        )
        self._stack = contextlib.ExitStack()

    # ------------------------------------------------------------------ on and off

    def __enter__(self) -> AmbientRecording:
        """Watch the process.

        Raises:
            OutputExistsError: The file exists.
        """
        if self.path.exists() and not self._force:
            raise OutputExistsError(
                f"{self.path}: the file exists; force=True replaces it, or name another"
            )
        self._process = os.getpid()
        self.path = self.path.absolute()  # the file is made later, wherever the program is then
        with contextlib.ExitStack() as stack:
            stack.enter_context(eagerly())
            stack.enter_context(self._training.looked_for)
            stack.callback(meet_generate(self._arrive))
            ENGINE.hold()  # an engine says who is in a batch before it calls the model
            stack.callback(ENGINE.release)
            stack.enter_context(self._outermost)
            self._uncalled.watch(stack)
            self._stack = self._uncalled.until = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_fork():
            return
        told = []
        try:
            self._uncalled.close_steps()
            for one in reversed(list(self._models)):
                found = self._end(one, kind, error, trace)
                if found is not None:
                    told.append(found)
        finally:
            self._stack.close()
        paths = [one.recording.path for one in self._written if one.recording is not None]
        told.sort(key=lambda one: paths.index(one.path))
        silent = met.silent_of(self._models)
        self.report = Report(tuple(told), self._said(), silent, self._others)

    def _is_fork(self) -> bool:
        """Whether this is a fork of the program, which has no trace of its own."""
        return os.getpid() != self._process

    def _end(
        self,
        one: Met,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> ModelReport | None:
        recording, late = one.recording, one.late
        if recording is None or late is None:
            return None
        recording.said += self._said()
        if isinstance(error, SystemExit):
            recording.end_with(
                Ending("done", f"the program ended with exit code {error.code or 0}")
            )
            kind = error = None
        with self._outermost.off():
            recording.__exit__(kind, error, trace)
        if recording.failure is not None:
            self._faults.append(f"recording stopped: {recording.failure}")
        if recording.recorder is None:
            return None
        meta, name = recording.recorder.meta, type(one.module).__name__
        if late.writer is None:
            if one.given_tokens:
                unseen = met.unseen_anywhere(one.module, meta.unseen, self._models)
                self._faults += [f"{name}: {why}" for why in unseen]
            return None
        return of_model(recording, meta, name)

    # ------------------------------------------------------------------ around each call

    def _around(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], run: Run
    ) -> Any:
        one = self._models.get(module)
        if self._is_fork():
            with contextlib.nullcontext() if one is None else one.unwatched():
                return run()
        if one is None:
            with self._harmless():
                one = self._meet(module, args, kwargs)
        if one is None or one.recording is None:
            return run()
        self._uncalled.called(one, named(module, args, kwargs))
        with unseen_by_modes():
            self._training.begins(one, one.recording, met.kind_of(module, args, kwargs))
        if one.proven[one.kind] >= PROVEN:
            one.training += 1
            with one.recording.unwatched():
                return run()
        with met.aside_of(one, self._models.stepping):
            result = run()
        self._leave_silent(one)
        return result

    @contextlib.contextmanager
    def _steps_of(
        self, module: nn.Module, rows: str, kind: tuple[object, ...]
    ) -> Iterator[Watch | None]:
        """What takes a call of another method of a model, given rows of this name, as a step."""
        one, embeds = self._models.get(module), "embed" in rows
        meets = one is None and (embeds or not self._models.with_ids)
        if meets and not met.holds_any(module, self._models):
            with self._harmless(), self._outermost.off():
                self._uncalled.leave()
                one = self._adopt(module, with_ids=embeds)
        begun = one is not None and one.implicit is not None and one.implicit.under_way
        if self._is_fork() or one is None or one.recording is None or begun:
            yield None  # where its ids were looked up already, that step goes on
            return
        with unseen_by_modes():
            self._training.begins(one, one.recording, kind)
        with met.aside_of(one, self._models.stepping):
            yield one.recording.watch
        self._leave_silent(one)

    def _meet(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Met | None:
        """A module that nobody has called before: watched, if it is given tokens."""
        arguments = named(module, args, kwargs)
        embeds = any("embeds" in name and value is not None for name, value in arguments.items())
        with unseen_by_modes():
            found = tokens_in(arguments)
        if not embeds and found is None:
            layer = any(module.children()) and rows_in(arguments) is not None
            if layer and not self._models.with_ids:
                self._uncalled.leave()
                return self._adopt(module, with_ids=False)
            self._others[type(module).__name__] += 1
            return None
        with unseen_by_modes():
            table = tables.table_of(module)
            if table is not None:
                # an embedding on its own: some method of a model is running, or a plain function
                root = tables.owner_of(module)
                if found is not None and (root is not None or self._uncalled.is_watched):
                    self._uncalled.step_of(root, found[1], tables.place_of(table))
                return None
        holds = any(module.children()) or tables.holds_unlisted(module)
        if not holds and not _holds_weights(module):
            return None
        self._uncalled.leave()
        return self._models.kin(module) or self._adopt(module)

    def _arrive(self, model: nn.Module) -> None:
        """`generate` of a model begins."""
        if self._models.get(model) is None:
            with self._harmless(), self._outermost.in_turn():
                self._models.get(model) or self._models.kin(model) or self._adopt(model)

    def _leave_silent(self, one: Met) -> None:
        """A layer on its own that did not attend is none, and others are looked for."""
        if one.is_layer and one.is_silent:
            with self._harmless():
                self._let_go(one)
                self._uncalled.watch(self._stack)

    def _let_go(self, one: Met) -> None:
        """A layer on its own is not recorded after all."""
        self._written = [other for other in self._written if other is not one]
        self._others[type(one.module).__name__] += one.calls
        with self._outermost.off():
            one.give_up()

    def _adopt(self, module: nn.Module, *, with_ids: bool = True) -> Met:
        """Watch a model from now on; what layers did on their own is nothing beside it."""
        for layer in [one for one in self._models if one.is_layer] if with_ids else ():
            self._let_go(layer)
        one = self._models.add(Met(module, with_ids=with_ids))
        watched = [other for other in self._models if other.recording is not None]
        if len(watched) >= MODELS:
            return one
        recording, late = self._make(module, self._create)
        one.recording, one.late = recording, late
        recording.undecided.gate = lambda forward: self._training.gate(one, forward)
        recording.__enter__()
        return one

    def _create(self, recording: Recording, meta: Meta) -> TraceWriter:
        """The file of a model that was seen to attend."""
        taken = {one.recording.path for one in self._written if one.recording is not None}
        path = free_path(self.path, taken, meta.rank, force=self._force)
        mine = next(one for one in self._models if one.recording is recording)
        recording.move(path)
        self._written.append(mine)
        return TraceWriter(path, meta, force=self._force)

    def _compare_so_far(self, recording: Recording) -> None:
        with self._harmless(), self._outermost.off():
            recording.compare_so_far()

    # ------------------------------------------------------------------ what is said

    def _said(self) -> tuple[str, ...]:
        """Sentences: what was left out."""
        out = met.left_out(self._models, MODELS)
        return tuple(dict.fromkeys((*out, *self._outermost.says, *self._faults)))

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """A fault of ours is said, and the run goes on; no mode of the program sees our work."""
        try:
            with unseen_by_modes():
                yield
        except OutputExistsError:
            raise
        except Exception as error:
            self._faults.append(
                f"watching failed: {type(error).__name__}: {message(error)}".splitlines()[0]
            )


def _holds_weights(module: nn.Module) -> bool:
    """Whether a module without others in it may be a whole model: with weights of its own."""
    return len(module._parameters) + len(module._buffers) >= _WHOLE_MODEL
