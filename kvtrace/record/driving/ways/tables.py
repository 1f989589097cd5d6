"""Tables of angles that a model must be given beside its tokens, as rotary ones are.

The user's own functions make them. Whether a model wants the whole table or the rows of its
tokens, trying shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType

import torch
from msgspec import Struct
from torch import Tensor, nn

from kvtrace.record.driving.ways.offered import spaces
from kvtrace.record.driving.ways.roles import Parameter, Signature, parameters_of
from kvtrace.record.driving.ways.sizes import Sizes, UnknownSizeError

_ANGLES = re.compile(r"(\w+_)?(freqs?|rope|rotary|cos|sin)(_\w+)?")
_MAKES = re.compile(
    r"_?(pre_?comp\w*|compute|build|make|get|create|init\w*|calc\w*)_\w*"
    r"(freqs?|rope|rotary|cos|sin|theta)\w*"
)
_HEAD = re.compile(r"(rope_|rotary_|head_)?(dim|size|width)|d|d_k|hd|d_model|n_embd")
_LENGTH = re.compile(r"end|(max_|n_|num_)?pos\w*|t")
_BASE = re.compile(r"(rope_)?(theta|base)(_\w+)?")
_USUAL_BASE, _USUAL_LENGTH = 10000.0, 1024


class Table(Struct, frozen=True):
    """What a parameter is given of a table.

    Attributes:
        values: All of it: a tensor, or several.
        length: Positions that it has rows for.
        whole: The model takes its rows itself.
        said: The function that made it.
    """

    values: object
    length: int
    whole: bool
    said: str

    def __str__(self) -> str:
        return self.said if self.whole else f"its rows of {self.said}"

    def form(self, before: int, new: int, device: torch.device) -> object:
        """The table, or the rows of the new tokens."""
        return self._part(self.values, before, new, device)

    def _part(self, values: object, before: int, new: int, device: torch.device) -> object:
        if isinstance(values, tuple | list):
            return type(values)(self._part(one, before, new, device) for one in values)
        if not isinstance(values, Tensor):
            return values
        values = values.to(device)
        if self.whole or self.length not in values.shape:
            return values
        return values.narrow(list(values.shape).index(self.length), before, new)


def tables(
    one: Parameter, signature: Signature, model: nn.Module, script: ModuleType | None
) -> Iterator[Table]:
    """What a parameter that asks for angles may be given, the likeliest first."""
    if not _ANGLES.fullmatch(one.name.lower()):
        return
    length = Sizes(model, 0).of("context") or _USUAL_LENGTH
    for name, function in _makers(model, script):
        try:
            made = function(**_filled(function, Sizes(model, length)))
        except Exception:  # it wanted something else
            continue
        # who is told where its tokens stand takes their rows itself
        for whole in (True, False) if signature.of("position") else (False, True):
            yield Table(_of(one, made), length, whole, f"{name}(…)")


def _makers(
    model: nn.Module, script: ModuleType | None
) -> Iterator[tuple[str, Callable[..., object]]]:
    found: dict[FunctionType, str] = {}
    for space in spaces(model, script):
        for name, value in space.items():
            if isinstance(value, FunctionType) and _MAKES.fullmatch(name.lower()):
                found.setdefault(value, name)
    yield from ((name, function) for function, name in found.items())


def _filled(function: Callable[..., object], sizes: Sizes) -> dict[str, object]:
    """The required arguments of such a function, whose width is that of a head."""
    filled: dict[str, object] = {}
    for one in parameters_of(function):
        name = one.name.lower()
        if one.default is not one.empty:
            continue
        if _LENGTH.fullmatch(name):
            filled[one.name] = sizes.capacity
        elif _BASE.fullmatch(name):
            filled[one.name] = _USUAL_BASE
        elif _HEAD.fullmatch(name):
            filled[one.name] = sizes.of("head_dim")
        else:
            filled |= sizes.named([one.name])
        if filled.get(one.name) is None:
            raise UnknownSizeError(one.name)
    return filled


def _of(one: Parameter, made: object) -> object:
    """The cosines or the sines, where both come together and only one is asked for."""
    name = one.name.lower()
    single = ("cos" in name) != ("sin" in name)
    if single and isinstance(made, tuple | list) and len(made) == 2:
        return made["sin" in name]
    return made
