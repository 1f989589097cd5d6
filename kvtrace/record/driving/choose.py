"""From a model and what its file offers to a drive.

The user's own functions come first, then transformers' way, then the way that is found by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from torch import nn

from kvtrace.record.decode import Drive, Standard
from kvtrace.record.driving.adapter import Adapted, Functions
from kvtrace.record.driving.calls import Calls
from kvtrace.record.driving.search import Search
from kvtrace.record.driving.way import Begin


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be driven.

    Attributes:
        prompt: Token ids.
        new_tokens: Decode steps.
        context: Tokens the model can take; 0 when unknown.
        script: The user's file.
        functions: Their "make_cache" and "step", where they wrote them.
        remake: Makes another model like it.
    """

    prompt: Sequence[int]
    new_tokens: int = 32
    context: int = 0
    script: ModuleType | None = None
    functions: Functions = field(default_factory=dict)
    remake: Callable[[], nn.Module] | None = None

    @property
    def capacity(self) -> int:
        """Tokens a cache must hold."""
        wanted = len(self.prompt) + self.new_tokens
        return min(wanted, self.context) if self.context else wanted


@dataclass(frozen=True, slots=True)
class Driven:
    """A drive, and how it calls the model.

    Attributes:
        drive: For the decode loop.
        call: One short line: the call.
        said: Sentences for people.
    """

    drive: Drive
    call: str
    said: tuple[str, ...]


def choose_drive(model: nn.Module, wish: Wish) -> Driven:
    """The drive of a model.

    Raises:
        ModelError: No way to call it was found; says what to add.
    """
    if "step" in wish.functions:
        search = Search(model, wish.prompt, wish.script, wish.context)
        made = " with the cache of your make_cache" if "make_cache" in wish.functions else ""
        call = f"your step(model, ids, cache, pos){made}"
        adapted = Adapted(model, wish.functions, wish.capacity, search.shape())
        return Driven(adapted, call, (f"driven by {call}",))
    if type(model).__module__.startswith("transformers."):
        call = "model(input_ids, past_key_values=cache, use_cache=True)"
        return Driven(Standard(model), call, ())
    own = _own_beginning(wish.functions)
    search = Search(model, wish.prompt, wish.script, wish.context, wish.remake, own)
    found = search.run()
    calls = Calls(model, found.way, wish.capacity, search.shape(), wish.prompt)
    return Driven(calls, str(found.way), found.said)


def _own_beginning(functions: Functions) -> Begin | None:
    """The user's `make_cache`, before any other beginning."""
    make = functions.get("make_cache")
    if make is None:
        return None
    return Begin("your make_cache(model, 1, max_len)", lambda model, room: make(model, 1, room))
