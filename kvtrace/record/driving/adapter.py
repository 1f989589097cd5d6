"""A model driven by the user's own functions: `make_cache`, `step`.

    def make_cache(model, batch, max_len): return Cache(batch, max_len)
    def step(model, ids, cache, pos): return logits, cache

Both are optional; `step` may return logits alone where the cache is filled in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kvtrace.errors import ModelError
from kvtrace.record.driving.calls import Shape
from kvtrace.record.driving.outputs import Logits, NoLogitsError, find_logits, last_row
from kvtrace.record.driving.roles import parameters_of

Functions = Mapping[str, Callable[..., object]]


@dataclass(slots=True)
class Adapted:
    """Calls `step`, token after token.

    Attributes:
        model: Handed to the functions.
        functions: "step", and perhaps "make_cache".
        capacity: Tokens a cache must hold.
        shape: Of the model's output.
    """

    model: nn.Module
    functions: Functions
    capacity: int
    shape: Shape = field(default_factory=Shape)
    _fed: int = -1
    _cache: object = None

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed the new tokens; logits of the last one, [vocab].

        Raises:
            ModelError: `step` returned no logits.
        """
        if self._fed < 0:
            self._fed = 0
            make = self.functions.get("make_cache")
            if make is not None:
                self._cache = call(make, self.model, batch=1, max_len=self.capacity)
        device = next((one.device for one in self.model.parameters()), torch.device("cpu"))
        new = len(tokens) - self._fed
        ids = torch.tensor([list(tokens[self._fed :])], device=device)
        with torch.no_grad():
            result = call(
                self.functions["step"], self.model, ids=ids, cache=self._cache, pos=self._fed
            )
        where = self._where(result, new)
        if isinstance(result, tuple) and len(result) == 2 and where.path[:1] == (0,):
            self._cache = result[1]
        self._fed = len(tokens)
        return last_row(result, where)

    def _where(self, result: object, new: int) -> Logits:
        try:
            return find_logits(result, new, self.shape.vocab_sizes, self.shape.width)
        except NoLogitsError as error:
            raise ModelError(
                f"step(model, ids, cache, pos): {error}; expected logits [1, {new}, vocab], or "
                "(logits, cache)"
            ) from error


def call(function: Callable[..., object], model: nn.Module, **values: object) -> object:
    """By place, as documented; a method of an adapter need not take the model again."""
    declared = [one for one in parameters_of(function) if one.kind is not one.VAR_KEYWORD]
    takes_model = not declared or len(declared) > len(values) or declared[0].name == "model"
    arguments = [model, *values.values()] if takes_model else list(values.values())
    return function(*arguments)
