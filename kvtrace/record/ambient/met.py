"""A model that was met while watching a process."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from kvtrace.record.ambient.implicit import Implicit
from kvtrace.record.ambient.late import LateWriter
from kvtrace.record.recording import Recording


@dataclass(slots=True)
class Met:
    """A model that is called with tokens.

    Attributes:
        module: It.
        recording: Of it; None: it was met too late, or was given up.
        training: Calls that turned out to be training, or the measuring of a loss.
        calls: Outermost calls.
        losses: Losses computed before the call under way.
        proven: Kind of call → times in a row it was training.
        compared: Steps whose other lanes were computed.
        implicit: Its steps, where they are no calls of it.
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
