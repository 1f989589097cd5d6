"""What is to be driven, as far as it is known before anything is tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

from msgspec import Struct, field
from torch import nn

from kvtrace.record.driving.adapter import Functions, call
from kvtrace.record.driving.ways.way import Begin


class Wish(Struct, frozen=True):
    """What is to be driven.

    Attributes:
        prompt: Token ids.
        new_tokens: Decode steps.
        context: Tokens the model can take; 0 when unknown.
        vocabulary: Tokens it knows; 0 when unknown.
        script: The user's file.
        functions: Their "make_cache" and "step", where they wrote them.
        remake: Makes another model like it.
    """

    prompt: Sequence[int]
    new_tokens: int = 32
    context: int = 0
    vocabulary: int = 0
    script: ModuleType | None = None
    functions: Functions = field(default_factory=dict)
    remake: Callable[[], nn.Module] | None = None

    @property
    def capacity(self) -> int:
        """Tokens a cache must hold."""
        wanted = len(self.prompt) + self.new_tokens
        return min(wanted, self.context) if self.context else wanted

    @property
    def beginning(self) -> Begin | None:
        """The user's `make_cache`, before any other beginning."""
        make = self.functions.get("make_cache")
        if make is None:
            return None
        return Begin(
            "your make_cache(model, 1, max_len)",
            lambda model, room: call(make, model, batch=room.sequences, max_len=room.tokens),
        )
