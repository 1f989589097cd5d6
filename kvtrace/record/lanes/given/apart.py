"""Steps that lie on no path, for no pass of the model over a text does what they did."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.given.packed import packed
from kvtrace.record.lanes.given.shown import branches
from kvtrace.text import safe


@dataclass(slots=True)
class Apart:
    """The steps, and why.

    Attributes:
        said: A sentence for each kind of them.
    """

    said: dict[str, str] = field(default_factory=dict)
    _steps: set[int] = field(default_factory=set)
    _model: nn.Module | None = None
    _attended: set[str] = field(default_factory=set)
    _began: set[int] = field(default_factory=set)

    def add(self, step: int, forward: Forward) -> None:
        """A forward became a step: it may be one."""
        if branches(forward):
            kind = "tree"
            text = (
                f"step {step} was fed several branches of the text at once, as trees of drafts "
                "are: it is not compared, nor what goes on from it"
            )
        elif texts := packed(forward):
            if not texts.go_on:
                self._began.add(step)
                return
            kind, held = "packed", len(texts.tokens)
            text = (
                f"step {step} was fed tokens of {held} texts that are packed in one row and don't "
                "see each other: it is shown as one sequence, and no such step is compared"
            )
            self._steps |= self._began
        elif self._is_elsewhere(forward):
            kind = safe(type(forward.model).__name__, 100)
            text = f"{kind} is called by itself, too, and attends elsewhere: that is not compared"
        else:
            return
        self._steps.add(step)
        self.said.setdefault(kind, text)

    def _is_elsewhere(self, forward: Forward) -> bool:
        """Whether a part of the model was called, and none of what attends in the model did."""
        if self._model is None:  # models may have a length, and be false for it
            self._model = forward.model
        modules = {call.module for call in forward.calls}
        if forward.model is self._model:
            self._attended |= modules
            return False
        return bool(modules) and modules.isdisjoint(self._attended)

    def __contains__(self, step: object, /) -> bool:
        return step in self._steps
