"""Steps of code that calls no model: told by the ids it looks up, and by what attends then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from kvtrace.record.ambient import met, tables
from kvtrace.record.ambient.implicit import Functions, Implicit, Lookups
from kvtrace.record.ambient.met import Met, Models
from kvtrace.record.ambient.outermost import Outermost
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.replaced.entrances import is_asking
from kvtrace.record.capture.tokens.inputs import tokens_in
from kvtrace.record.flow import FlowWatch
from kvtrace.record.modes import FUNCTION_MODES, unseen_by_modes
from kvtrace.record.recording import Recording


@dataclass(slots=True)
class Uncalled:
    """What runs outside of any call of a model, watched as long as none was called.

    Attributes:
        models: Those that were met.
        outermost: Says whether a call of a module is under way.
        adopt: Watches one more model, or plain functions.
        harmless: Keeps faults of ours from the program.
        is_fork: Whether this is a fork of the program, which has no trace of its own.
        begins: Is told of a model that a step of it begins.
        until: What is closed when the recording ends.
        functions: Plain functions that looked up ids, as a model; None: none did.
    """

    models: Models
    outermost: Outermost
    adopt: Callable[[nn.Module], Met]
    harmless: Callable[[], AbstractContextManager[None]]
    is_fork: Callable[[], bool]
    begins: Callable[[Met, Recording], None]
    until: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    functions: Met | None = None
    _given_rows: set[int] = field(default_factory=set)
    _flow: FlowWatch | None = None
    _lookups: Lookups | None = None
    _mode: object = None
    _modes: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def watch(self, stack: contextlib.ExitStack) -> None:
        """Until a model is met that is called, watch what torch functions do."""
        flow = self._flow = FlowWatch(sink=self._attended)
        modes = contextlib.ExitStack()
        self._lookups = Lookups(self._looked_up)
        modes.enter_context(self._lookups)
        modes.enter_context(flow)
        self._modes, self._mode = modes, FUNCTION_MODES.top
        stack.callback(modes.close)

    def leave(self) -> None:
        """A model was met that is called: everything else goes at full speed again."""
        if self.functions is None and FUNCTION_MODES.top is self._mode:
            self._modes.close()
            self._lookups = None

    def called(self, one: Met, arguments: Mapping[str, object]) -> None:
        """A model is called: if with ids, what was done with its layers by hand before is over.

        Else it may be given what was made of ids just now, and goes on with that step.
        """
        step = one.implicit
        if step is None or not step.under_way:
            return
        with self.harmless(), unseen_by_modes():
            if tokens_in(arguments) is None:
                self._given_rows.add(id(one))
                step.given_rows(one.module, arguments)
            else:
                step.close()
        self.leave()

    @property
    def is_watched(self) -> bool:
        """Whether no model was met yet that is called."""
        return self._lookups is not None

    def _looked_up(self, ids: torch.Tensor, table: int) -> None:
        if not (self.outermost.inside or is_asking() or self.is_fork()):
            with self.harmless(), unseen_by_modes():
                one, owner = self.models.stepping, met.holder_of(self.models, table)
                if one is not None and owner is None and tables.runs_within(one.module):
                    return  # places, in a table that the model keeps beside its weights
                self.step_of(owner, ids, table)

    def _attended(self, call: AttentionCall) -> None:
        """Attention that no model's own watcher saw: a function's, or a method's of a model."""
        if is_asking() or self.is_fork():
            return  # another recording computes a lane
        one = self.functions or (None if self.outermost.inside else self.models.stepping)
        if one is not None and one.implicit is not None:
            with self.harmless():
                one.implicit.attended(call)

    def step_of(self, root: nn.Module | None, ids: torch.Tensor, table: int) -> None:
        """Ids were looked up by code that is no call of a model: a method's, or nobody's."""
        root = met.holder_of(self.models, table) if root is None else root
        if root is None:
            if self.functions is None:
                self.functions = self.adopt(Functions())
            one: Met | None = self.functions
        else:
            one = self.models.get(root) or self.adopt(root)
        if one is None or one.recording is None:
            return
        if root is not None and self._lookups is None and id(one) not in self._given_rows:
            self.watch(self.until)  # of a model that was called, and now its layers are, by hand
            if self._flow is not None and one.implicit is not None:
                self._flow.name(root)
        if self._flow is not None:
            self._flow.begin_step(*ids.shape)
        if one.implicit is None:
            if self._flow is not None and root is not None:
                self._flow.name(root)
            name = "tokens" if root is None else tables.ids_of(root)
            one.implicit = Implicit(one.recording, name, begins_at_once=root is not None)
            one.implicit.begins = partial(self.begins, one, one.recording)
        one.implicit.looked_up(ids, table)

    def close_steps(self) -> None:
        """Steps that are no calls end where everything does."""
        if self._flow is not None and self.functions is not None:
            self._flow.begin_step()
        for one in self.models:
            if one.implicit is not None:
                with self.harmless():
                    one.implicit.close()
