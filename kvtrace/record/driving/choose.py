"""From a model and what its file offers to a drive.

The user's own functions come first, then transformers' way, then the way that is found by trying.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from kvtrace.record.decode import Drive, Standard
from kvtrace.record.driving.adapter import Adapted
from kvtrace.record.driving.calls import Calls
from kvtrace.record.driving.search import Search
from kvtrace.record.driving.wish import Wish


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
        search = Search(model, wish)
        made = " with the cache of your make_cache" if "make_cache" in wish.functions else ""
        call = f"your step(model, ids, cache, pos){made}"
        adapted = Adapted(model, wish.functions, wish.capacity, search.shape())
        return Driven(adapted, call, (f"driven by {call}",))
    if type(model).__module__.startswith("transformers."):
        call = "model(input_ids, past_key_values=cache, use_cache=True)"
        return Driven(Standard(model), call, ())
    search = Search(model, wish)
    found = search.run()
    calls = Calls(model, found.way, wish.capacity, search.shape(), wish.prompt)
    return Driven(calls, str(found.way), found.said)
