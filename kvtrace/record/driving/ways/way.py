"""One way to call a model: what is passed for each parameter, and where the cache is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from msgspec import Struct, field
from torch import Tensor, nn

from kvtrace.record.driving.ways.roles import Signature

Layout = Literal["batch", "flat", "time first", "single"]
"""Of the ids: [1, new], [new], [new, 1], or one of them without a dimension."""

_LAYOUTS = {"batch": "[1, new]", "flat": "[new]", "time first": "[new, 1]", "single": "[]"}

Form = Callable[[int, int, torch.device], object]
"""(tokens before, new tokens, device) to what a parameter is given."""


class Argument(Struct, frozen=True):
    """What one parameter is given at every call.

    Attributes:
        name: Of the parameter.
        said: The value, for people.
        form: Makes it.
        padded: Its last dimension is made as long as the cache can hold.
        of_source: It speaks of what an encoder is given, not of the tokens.
    """

    name: str
    said: str
    form: Form
    padded: bool = False
    of_source: bool = False


class Room(NamedTuple):
    """What a cache must hold.

    Attributes:
        tokens: Of each sequence.
        sequences: Rows of the batch.
    """

    tokens: int
    sequences: int = 1


class Begin(Struct, frozen=True):
    """How something begins: a cache that is passed, or one inside of the model.

    Attributes:
        said: For people: `None`, `model.make_cache(batch=1, max_len=44)`.
        make: (model, what it must hold) to the cache; what it returns may mean nothing.
        of_class: It is an object of somebody's class.
        number: Tells beginnings apart of which the same is said.
        empties: It makes nothing: whatever was kept is dropped.
    """

    said: str
    make: Callable[[nn.Module, Room], object]
    of_class: bool = False
    number: int = 0
    empties: bool = False


class Passed(Struct, frozen=True):
    """A cache that is passed in.

    Attributes:
        names: Parameters that take it, several where keys and values have one each.
        begin: How it begins, each of them alike.
        pick: Which of the places in the result where it may come back, counted by likelihood.
        moved: The caller moves its offset on, after every call.
    """

    names: tuple[str, ...]
    begin: Begin
    pick: int = 0
    moved: bool = False


class Way(Struct, frozen=True):
    """How a model is called, step after step.

    Attributes:
        signature: Of its forward.
        layout: Of the ids.
        cache: Where it is passed; None where it is inside, or nowhere.
        inside: The model keeps one itself.
        first: Done to the model before the first call, in order.
        given: What further parameters are given.
        feeds: With a cache: the new tokens only, always all of them, never more than one, or all
            of them and never more than one more.
    """

    signature: Signature
    layout: Layout = "batch"
    cache: Passed | None = None
    inside: bool = False
    first: tuple[Begin, ...] = ()
    given: tuple[Argument, ...] = field(default=())
    feeds: Literal["new", "all", "one", "each"] = "new"

    @property
    def again(self) -> bool:
        """Whether all tokens are given at every step."""
        return self.feeds in ("all", "each")

    @property
    def singly(self) -> bool:
        """Whether no step takes more than one new token."""
        return self.feeds in ("one", "each")

    @property
    def caches(self) -> bool:
        """Whether anything is kept from step to step."""
        return self.cache is not None or self.inside

    def ids(self, tokens: Sequence[int], device: torch.device) -> Tensor:
        """Token ids as the model takes them."""
        made = torch.tensor(list(tokens), dtype=torch.long, device=device)
        if self.layout == "flat":
            return made
        if self.layout == "single":
            return made[-1]
        return made[None] if self.layout == "batch" else made[:, None]

    def batch(self, texts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
        """Ids of several sequences; of one, as the model takes them."""
        rows = [self.ids(one, device) for one in texts]
        return torch.cat(rows, int(self.layout == "time first")) if len(rows) > 1 else rows[0]

    def __str__(self) -> str:
        """The call, as one would write it."""
        ids = self.signature.ids
        shape = _LAYOUTS[self.layout]
        if not self.caches or self.again:
            shape = shape.replace("new", "all")
        if self.feeds == "one":
            shape = shape.replace("new", "1")
        shown = [f"{one.name}=prompt[:-1]" for one in self.signature.of("source")]
        shown.append(f"{'ids' if ids is None else ids.name} {shape}")
        if self.cache is not None:
            shown += [f"{name}=cache" for name in self.cache.names]
        shown += [f"{one.name}={one.said}" for one in self.given]
        return f"model({', '.join(shown)})"


# -- what positions and masks can look like ------------------------------------------------


def ahead(form: Callable[[int, int, torch.device], Tensor], axes: int = 1) -> Form:
    """The same with further axes before its own, each of one."""
    return lambda *given: form(*given)[(None,) * axes]


def start_number(before: int, new: int, device: torch.device) -> object:
    """How many tokens came before."""
    return before


def total_number(before: int, new: int, device: torch.device) -> object:
    """How many tokens there are with the new ones."""
    return before + new


def places(before: int, new: int, device: torch.device) -> Tensor:
    """The positions of the new tokens, [new]."""
    return torch.arange(before, before + new, device=device)


def start_scalar(before: int, new: int, device: torch.device) -> Tensor:
    """How many tokens came before, as a tensor without dimensions."""
    return torch.tensor(before, device=device)


def is_first(before: int, new: int, device: torch.device) -> object:
    """Whether this is the prefill."""
    return before == 0


def causal(before: int, new: int, device: torch.device) -> Tensor:
    """True where a new token may look, [new, before + new]."""
    rows = torch.arange(before, before + new, device=device)
    return torch.arange(before + new, device=device)[None, :] <= rows[:, None]


def added(before: int, new: int, device: torch.device) -> object:
    """Zero where a new token may look, -inf elsewhere, [new, before + new]."""
    zeros = torch.zeros(new, before + new, device=device)
    return zeros.masked_fill(~causal(before, new, device), -torch.inf)


def blocked(before: int, new: int, device: torch.device) -> Tensor:
    """True where a new token may not look, [new, before + new]."""
    return ~causal(before, new, device)


def shown(before: int, new: int, device: torch.device) -> Tensor:
    """True for every token so far, [before + new]."""
    return torch.ones(before + new, dtype=torch.bool, device=device)


LENGTHS = "lengths [1]"
"""What is said of `lengths`."""


def lengths(before: int, new: int, device: torch.device) -> object:
    """How long each text is, [1]."""
    return torch.tensor([before + new], device=device)


def all_ones(before: int, new: int, device: torch.device) -> object:
    """A one for every token so far, [1, before + new]."""
    return torch.ones(1, before + new, dtype=torch.long, device=device)
