"""Which calls of models are steps, and which train: a loss or a gradient follows those."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from kvtrace.record.ambient.evidence import Evidence
from kvtrace.record.ambient.met import Met, Models
from kvtrace.record.capture.forward import Forward
from kvtrace.record.recording import Recording

PROVEN = 3
"""Training calls of one shape after which the next ones are not watched any more."""


class Training:
    """What is known of the calls of the models that were met."""

    def __init__(self, models: Models, compare: Callable[[Recording], None]) -> None:
        """Nothing is looked for before `looked_for`.

        Args:
            models: That were met, and will be.
            compare: Computes the other lanes of what there is, before the weights change.
        """
        self._models = models
        self._compare = compare
        self._evidence = Evidence(self._loss, self._backward, self._load)
        self._last: Met | None = None

    @property
    def looked_for(self) -> AbstractContextManager[object]:
        """Losses and gradients are, inside."""
        return self._evidence

    def begins(self, one: Met, recording: Recording, kind: tuple[object, ...]) -> None:
        """A call of a model that is recorded begins.

        Args:
            one: The model.
            recording: Of it.
            kind: What calls of a training loop have in common.
        """
        one.calls += 1
        self._step(one, recording, kind)

    def begins_by_hand(self, one: Met, recording: Recording) -> None:
        """A step begins that is no call of its model."""
        self._step(one, recording, ("by hand",))

    def _step(self, one: Met, recording: Recording, kind: tuple[object, ...]) -> None:
        recording.undecided.settle(keep=True)
        one.losses, one.kind = self._evidence.losses, kind
        self._last = one

    def gate(self, one: Met, forward: Forward) -> str:
        """Whether a forward is a step, as far as can be said when it ends."""
        if self._evidence.losses > one.losses:
            self._trained(one)
            return "no"
        if forward.new > 1 and (
            torch.is_grad_enabled() or forward.sequences > 1 or one.training > 0
        ):
            return "wait"
        return "step"

    def _trained(self, one: Met) -> None:
        one.training += 1
        one.proven[one.kind] += 1

    def _loss(self) -> None:
        """A loss is about to be computed: of what the last call made."""
        one = self._last
        if one is not None and one.recording is not None and one.recording.undecided.waits:
            one.recording.undecided.settle(keep=False)
            self._trained(one)

    def _backward(self) -> None:
        """A gradient is about to be computed; the weights are still what they were."""
        self._loss()
        for one in self._models:
            self._settle(one)

    def _load(self, module: nn.Module) -> None:
        """Other weights are about to be loaded."""
        for one in self._models:
            if one.recording is not None and any(part is module for part in one.module.modules()):
                one.recording.undecided.settle(keep=True)
                self._settle(one)

    def _settle(self, one: Met) -> None:
        """Compare what a model did so far, with the weights that it did it with."""
        recording = one.recording
        if recording is not None and recording.steps > one.compared:
            one.compared = recording.steps
            self._compare(recording)
