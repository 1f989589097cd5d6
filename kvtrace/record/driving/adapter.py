"""A model driven by the user's own functions: `make_cache`, `step`.

    def make_cache(model, batch, max_len): return Cache(batch, max_len)
    def step(model, ids, cache, pos): return logits, cache

Both are optional; `step` may return logits alone where the cache is filled in place.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor, nn

from kvtrace.errors import ModelError
from kvtrace.record.driving.entrance import called_by
from kvtrace.record.driving.trying.private import nothing_left, private_copy
from kvtrace.record.driving.ways.calls import Shape
from kvtrace.record.driving.ways.outputs import Logits, NoLogitsError, find_logits, last_row
from kvtrace.record.driving.ways.roles import parameters_of
from kvtrace.record.processes.local import device_of
from kvtrace.record.whose import of_frameworks

Functions = Mapping[str, Callable[..., object]]

_STEP_TAKES = ["model", "ids", "cache", "pos"]


@dataclass(slots=True)
class Adapted:
    """Calls `step`, token after token.

    Attributes:
        step_of: (ids, cache, pos) to what the user's `step` returns.
        model: Handed to the functions.
        make_cache: The user's; None where the cache begins as None.
        capacity: Tokens a cache must hold.
        shape: Of the model's output.
        singly: Their step feeds its tokens one after the other by itself: so does this.
    """

    step_of: Callable[..., object]
    model: nn.Module
    make_cache: Callable[..., object] | None
    capacity: int
    shape: Shape = field(default_factory=Shape)
    singly: bool = False
    _fed: int = -1
    _cache: object = None

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed the new tokens; logits of the last one, [vocab].

        Raises:
            ModelError: `step` returned no logits.
        """
        if self._fed < 0:
            self._fed = 0
            self._cache = begun(self.make_cache, self.model, self.capacity)
        if self.singly:
            for end in range(self._fed + 1, len(tokens)):
                self._feed(tokens[end - 1 : end])
        return self._feed(tokens[self._fed :])

    def _feed(self, new: Sequence[int]) -> Tensor:
        """One call; logits of its last token, [vocab]."""
        ids = torch.tensor([list(new)], device=device_of(self.model))
        with torch.no_grad():
            result = self.step_of(ids, self._cache, self._fed)
        where = self._where(result, len(new))
        if isinstance(result, tuple) and len(result) == 2 and where.path[:1] == (0,):
            self._cache = result[1]
        self._fed += len(new)
        return last_row(result, where)

    def _where(self, result: object, new: int) -> Logits:
        try:
            return find_logits(result, new, self.shape.vocab_sizes, self.shape.width)
        except NoLogitsError as error:
            raise ModelError(
                f"step(model, ids, cache, pos): {error}; expected logits [1, {new}, vocab], or "
                "(logits, cache)"
            ) from error


def beside_class(model: nn.Module) -> Functions:
    """The user's functions in the file of a model's class, for a model that comes without a file.

    A `step` there may be anything, of an optimizer say: its parameters must be those of ours.
    """
    script = beside_model(model)
    if script is None:
        return {}
    held = vars(script)
    found = {name: held[name] for name in ("make_cache", "step") if callable(held.get(name))}
    if "step" in found and [one.name for one in parameters_of(found["step"])] != _STEP_TAKES:
        del found["step"]
    return found


def beside_model(model: nn.Module) -> ModuleType | None:
    """The file of a model's class; None where that is a library's."""
    kind = type(model)
    return None if of_frameworks(kind) else sys.modules.get(kind.__module__)


def adapted(
    model: nn.Module, functions: Functions, capacity: int, shape: Shape, script: ModuleType | None
) -> tuple[Adapted, nn.Module]:
    """A drive by the user's functions, and what it calls, to be watched.

    Where their `step` calls the model, the model is watched; else each `step` is taken for a call.
    """
    step, make = functions["step"], functions.get("make_cache")

    def bound(one: nn.Module) -> Callable[..., object]:
        def forward(ids: Tensor, cache: object = None, pos: int = 0) -> object:
            cache = begun(make, one, capacity) if cache is None else cache
            return call(step, one, ids=ids, cache=cache, pos=pos)

        return forward

    if _called(model, bound, script, 1).get(""):
        return Adapted(bound(model), model, make, capacity, shape), model
    watched = called_by(model, bound)
    singly = _loops(*(_called(model, bound, script, new) for new in (1, 2)))
    return Adapted(watched, model, make, capacity, shape, singly), watched


def _called(
    model: nn.Module,
    bound: Callable[[nn.Module], Callable[..., object]],
    script: ModuleType | None,
    new: int,
) -> Counter[str]:
    """How often a step of so many tokens calls each module, the model's own name empty.

    Tried on a copy.
    """
    seen: Counter[str] = Counter()
    try:
        with nothing_left(model, script):
            one = private_copy(model)
            for name, part in one.named_modules():
                part.register_forward_pre_hook(lambda *_, name=name: seen.update([name]))
            device = device_of(one)
            bound(one)(torch.zeros(1, new, dtype=torch.long, device=device))
    except Exception:
        return Counter([""])  # what is wrong shows in the run, with the user's line
    return seen


def _loops(one: Counter[str], two: Counter[str]) -> bool:
    """Whether a step of two tokens does all that it does with one twice over."""
    return bool(one) and two == one + one


def begun(make: Callable[..., object] | None, model: nn.Module, capacity: int) -> object:
    """A cache by the user's function; None where there is none."""
    return None if make is None else call(make, model, batch=1, max_len=capacity)


def call(function: Callable[..., object], model: nn.Module, **values: object) -> object:
    """By place, as documented; a method of an adapter need not take the model again."""
    declared = [one for one in parameters_of(function) if one.kind is not one.VAR_KEYWORD]
    takes_model = not declared or len(declared) > len(values) or declared[0].name == "model"
    arguments = [model, *values.values()] if takes_model else list(values.values())
    return function(*arguments)
