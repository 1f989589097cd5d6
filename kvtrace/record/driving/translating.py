"""Methods of a translator as its forward: one encodes, one begins a state, one takes a step.

`decode_step(token, state)` goes on with what `init_state(encode(src))` begins. Together they are
called as a forward with a cache is: the state is the cache, and begins where none is given.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

from msgspec import Struct
from torch import Tensor, nn

from kvtrace.record.capture.attention.kinds import is_two_sided, kind_of
from kvtrace.record.driving.entrance import called_by, may_step, through
from kvtrace.record.driving.ways.offered import methods
from kvtrace.record.driving.ways.roles import parameters_of, signature_of

_SOURCE = "src"
_ENCODES = re.compile(r"(\w+_)?encode(_\w+)?|(forward|run|call)_encoder")
_BEGINS = re.compile(
    r"(init|initial|initiali[sz]e|start|begin|make|create|new|get|prepare|set_?up|build|empty)_"
    r"(\w+_)?(states?|caches?|kv|decode|decoder|decoding)(_\w+)?"
)
_READS_SOURCE = re.compile(r"src|sources?|(src|source)_\w+|input_ids")
_MEMORY = re.compile(r"mem|memory|memories|enc|encoded|(enc|encoder)_\w+|context|ctx")


class _Begun(NamedTuple):
    """What goes from step to step, where a step takes what was encoded beside its state."""

    memory: object
    state: object


class Translating(Struct, frozen=True):
    """Methods that translate together.

    Attributes:
        encode: Takes the ids of a source.
        begin: Makes the state of what that returns, or of the source; empty: a step makes it.
        of_source: It takes the source.
        step: Takes one token at a time, and the state.
        memory: Its parameter for what was encoded; empty: that is in the state.
        flat: That token comes without an axis for its place in the sequence.
    """

    encode: str
    begin: str
    of_source: bool
    step: str
    memory: str
    flat: bool

    def __str__(self) -> str:
        """For people: `model.encode, model.init_state, then model.decode_step`."""
        first = ", ".join(f"model.{one}" for one in (self.encode, self.begin) if one)
        return f"{first}, then model.{self.step}"


def translating(model: nn.Module) -> Iterator[Translating]:
    """Methods that look so, by their names and by what they take."""
    if not _both_sides(model):
        return  # one call takes in both texts at first: only names tell them apart
    named = [name for name, _ in methods(model) if not name.startswith("_")]
    needs = {name: _needed(getattr(model, name)) for name in named}
    encodes = [one for one in named if _ENCODES.fullmatch(one.lower()) and len(needs[one]) == 1]
    if not encodes:
        return
    begins = [one for one in named if _BEGINS.fullmatch(one.lower()) and len(needs[one]) == 1]
    for encode, step, begin in product(encodes, _steps(model, named), (*begins, "")):
        memory = next((one for one in needs[step] if _MEMORY.fullmatch(one.lower())), "")
        if memory or begin:
            of_source = bool(begin and _READS_SOURCE.fullmatch(needs[begin][0].lower()))
            for flat in (True, False):  # most that take one without an axis would take two
                yield Translating(encode, begin, of_source, step, memory, flat)


def _both_sides(model: nn.Module) -> bool:
    """Whether its modules say by their names what encodes and what decodes."""
    paths = [path for path, _ in model.named_modules()]
    encodes = any(kind_of(path, two_sided=True) == "encoder" for path in paths)
    return encodes and is_two_sided(paths)


def _needed(function: Callable[..., object]) -> list[str]:
    """What must be given, but for masks: those hide nothing of a single text."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [one for one in parameters_of(function) if one.default is one.empty]
    return [one.name for one in needed if one.kind not in kinds and "mask" not in one.name.lower()]


def _steps(model: nn.Module, named: list[str]) -> list[str]:
    """Methods that take a token and a state, and no source."""
    found = []
    for name in named:
        signature = signature_of(through(model, name))
        takes = signature.ids and signature.of("cache") and not signature.of("source")
        if name != "forward" and may_step(name.lower()) and takes:
            found.append(name)
    return found


def translated(model: nn.Module, by: Translating) -> nn.Module:
    """The model, called by the methods for a source and by the one for single tokens."""
    return called_by(model, lambda one: _stepping(one, by))


def _stepping(model: nn.Module, by: Translating) -> Callable[..., object]:
    """What is called with a source, and the arguments of the method for single tokens."""
    signature = signature_of(through(model, by.step))
    assert signature.ids is not None
    ids, state = signature.ids.name, signature.of("cache")[0].name
    step = getattr(model, by.step)
    whole = signature_of(model)  # which it is held against: the texts are called as there
    reads = next((one.name for one in whole.of("source")), _SOURCE)
    writes = whole.ids.name if whole.of("source") and whole.ids is not None else ids
    source = inspect.Parameter(reads, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    others = [one for one in parameters_of(step) if one.name not in (ids, state, by.memory)]
    declared = inspect.Signature(
        [
            *(source, source.replace(name=writes), source.replace(name=state, default=None)),
            *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in others),
        ]
    )

    def run(*args: object, **named: object) -> object:
        given = declared.bind(*args, **named).arguments
        text, token, held = given.pop(reads), given.pop(writes), given.pop(state, None)
        assert isinstance(token, Tensor)
        if token.shape[-1] != 1:
            raise ValueError(f"{by.step} takes one token at a time")
        begun = held if isinstance(held, _Begun) else _begun(model, by, text, held)
        given |= {by.memory: begun.memory} if by.memory else {}
        token = token.reshape(-1) if by.flat else token
        result = step(**{ids: token, state: begun.state}, **given)
        if isinstance(result, Tensor):
            result = (result, begun.state)
        if by.memory and isinstance(result, tuple) and len(result) > 1:
            result = (result[0], _Begun(begun.memory, result[1]))
        return result

    run.__signature__ = declared  # type: ignore[attr-defined]
    return run


def _begun(model: nn.Module, by: Translating, text: object, held: object) -> _Begun:
    """Where a text begins: what was encoded, where a step takes that, and the state."""
    needed = by.memory or (held is None and by.begin and not by.of_source)
    encoded = _with(model, by.encode, text) if needed else None
    if held is None and by.begin:
        held = _with(model, by.begin, text if by.of_source else encoded)
    return _Begun(encoded, held)


def _with(model: nn.Module, method: str, value: object) -> object:
    """A method, given what it needs; a mask that must be given hides nothing."""
    called = getattr(model, method)
    needed = [one.name for one in parameters_of(called) if one.default is one.empty]
    first = _needed(called)[0]
    return called(**{name: value if name == first else None for name in needed})
