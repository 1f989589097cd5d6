"""A model that was met while watching a process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from kvtrace import units
from kvtrace.record.ambient.implicit import Implicit
from kvtrace.record.ambient.late import LateWriter
from kvtrace.record.ambient.tables import place_of
from kvtrace.record.capture.inner import inner_models
from kvtrace.record.recording import Recording


@dataclass(slots=True)
class Met:
    """A model that is called with tokens, or a layer that is called on its own.

    Attributes:
        module: It.
        recording: Of it; None: it was met too late, or was given up.
        training: Calls that turned out to be training, or the measuring of a loss.
        calls: Outermost calls.
        losses: Losses computed before the call under way.
        proven: Kind of call → times in a row it was training.
        compared: Steps whose other lanes were computed.
        implicit: Its steps, where they are no calls of it.
        with_ids: It is called with token ids; a layer on its own is given rows.
    """

    module: nn.Module
    recording: Recording | None = None
    late: LateWriter | None = None
    training: int = 0
    calls: int = 0
    losses: int = 0
    kind: tuple[object, ...] = ()
    proven: Counter[tuple[object, ...]] = field(default_factory=Counter)
    compared: int = 0
    implicit: Implicit | None = None
    with_ids: bool = True

    @property
    def given_tokens(self) -> int:
        """Calls with tokens that were no training, those of its other methods included."""
        methods = self.implicit if self.implicit and self.implicit.begins_at_once else None
        return self.calls - self.training + (methods.lookups if methods else 0)

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer on its own, and recorded."""
        return not self.with_ids and self.recording is not None

    @property
    def is_silent(self) -> bool:
        """Whether nothing of it is recorded yet, nor waits to be."""
        waits = None if self.recording is None else self.recording.undecided.waits
        return not (waits and waits.calls) and (self.late is None or self.late.writer is None)

    def unwatched(self) -> AbstractContextManager[None]:
        """Its calls inside are no steps."""
        return nullcontext() if self.recording is None else self.recording.unwatched()

    def give_up(self) -> None:
        """End its recording, and leave none."""
        recording, self.recording = self.recording, None
        late, self.late = self.late, None
        if recording is None:
            return
        recording.drop()
        if late is not None and late.writer is not None:
            recording.path.unlink(missing_ok=True)


class Models:
    """The models that were met, in that order."""

    def __init__(self) -> None:
        """None so far."""
        self._met: dict[int, Met] = {}
        self._kin: dict[int, tuple[nn.Module, Met]] = {}

    def __iter__(self) -> Iterator[Met]:
        return iter(list(self._met.values()))

    def get(self, module: nn.Module) -> Met | None:
        """The model that this is, or whose steps its calls are."""
        known = self._met.get(id(module))
        if known is None and (kin := self._kin.get(id(module))) is not None:
            known = kin[1]
        return known

    def add(self, one: Met) -> Met:
        """A model is met."""
        self._met[id(one.module)] = one
        return one

    @property
    def with_ids(self) -> bool:
        """Whether any is called with token ids; where none is, a layer may be all there is."""
        return any(one.with_ids for one in self)

    @property
    def stepping(self) -> Met | None:
        """The model whose step is under way that no call of it began."""
        found = [one for one in self if one.implicit and one.implicit.under_way]
        return found[-1] if found else None

    def kin(self, module: nn.Module) -> Met | None:
        """The model that a module goes on with: it is most of it, or most of it is the model.

        Whoever calls a model for the prompt and what is under its head for the rest, or the other
        way round, hands one cache to both.
        """
        for one in self:
            if one.recording is None or not one.with_ids or one.is_silent:
                continue
            if any(part is module for part in inner_models(one.module)):
                one.recording.take_in(module)
            elif all(part is not one.module for part in inner_models(module)):
                continue
            self._kin[id(module)] = module, one
            return one
        return None


def holder_of(models: Iterable[Met], table: int) -> nn.Module | None:
    """The model that a table belongs to, of those whose steps are no calls, whoever looks in it."""
    for one in models:
        steps = one.implicit is not None and one.implicit.begins_at_once
        if steps and any(place_of(part) == table for part in one.module.parameters()):
            return one.module
    return None


def aside_of(one: Met, around: Met | None) -> AbstractContextManager[None]:
    """What a model of its own does is its own step, whatever steps around it."""
    if around is None or around is one or around.implicit is None:
        return nullcontext()
    return around.implicit.aside()


def holds_any(module: nn.Module, models: Models) -> bool:
    """Whether parts of a module were met: they take steps themselves."""
    return any(models.get(part) is not None for part in module.modules() if part is not module)


def silent_of(models: Iterable[Met]) -> dict[str, int]:
    """Classes of models that were called with tokens and did not attend → calls."""
    return {
        type(one.module).__name__: one.given_tokens
        for one in models
        if one.late is not None and one.late.writer is None and one.given_tokens
    }


def unseen_anywhere(module: nn.Module, told: Iterable[str], models: Iterable[Met]) -> Iterator[str]:
    """Those of the sentences of what a model was not seen to do, that no other one did for it.

    Args:
        module: Of which nothing was recorded.
        told: "path: …" or "path (Class): …", of each module that was not seen to attend.
        models: All that were met; several may share modules.
    """
    attended = set[int]()
    for one in models:
        recorder = None if one.recording is None else one.recording.recorder
        parts = dict(one.module.named_modules(remove_duplicate=False))
        sites = () if recorder is None else recorder.meta.sites
        attended |= {id(parts[site.module]) for site in sites if site.module in parts}
    parts = dict(module.named_modules(remove_duplicate=False))
    for sentence in told:
        part = parts.get(sentence.split(" ")[0].rstrip(":"))
        if part is None or not any(id(inner) in attended for inner in part.modules()):
            yield sentence


def kind_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[object, ...]:
    """What calls of a training loop have in common."""
    shapes = tuple(tuple(x.shape) for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
    return (module.training, torch.is_grad_enabled(), *shapes)


def left_out(models: Iterable[Met], most: int) -> list[str]:
    """Sentences: what of these was not recorded.

    Args:
        models: That were met.
        most: So many are recorded.
    """
    out = []
    for one in models:
        name = type(one.module).__name__
        if one.training:
            calls = units.counted(one.training, "call")
            were = "was" if one.training == 1 else "were"
            out.append(f"{name}: {calls} trained or measured a loss and {were} not recorded")
        if one.recording is None and one.with_ids:
            out.append(f"{name}: only the first {most} models are recorded")
    return out
