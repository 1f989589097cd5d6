"""The model that a lane calls while others may use it: itself, or a copy with its weights."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from torch import nn

from kvtrace.record.capture.forward import Beginning
from kvtrace.record.lanes.as_it_was.snapshot import copied
from kvtrace.record.paged.batch import is_packed


@dataclass(slots=True)
class Apart:
    """A model that keeps nothing between its calls.

    Attributes:
        model: It.
    """

    model: nn.Module
    _callers: set[threading.Thread] = field(default_factory=set)
    _copy: nn.Module | None = None

    def called(self) -> None:
        """This thread calls it."""
        self._callers.add(threading.current_thread())

    def begin(self, beginning: Beginning) -> None:
        """A forward is about to run; an engine's has not set its configuration yet."""
        if self._copy is None and is_packed(beginning.arguments):
            self._copy = copied(self.model)

    @property
    def model_now(self) -> nn.Module:
        """The model; a copy with its weights while another thread may be in the middle of a call.

        Some of transformers' forwards set their configuration while they run.
        """
        mine = threading.current_thread()
        if all(one is mine or not one.is_alive() for one in self._callers):
            return self.model
        if self._copy is None:
            self._copy = copied(self.model)
        return self._copy
