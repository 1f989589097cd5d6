"""The function whose call is a step, where there is no module: told by the frames that run.

It is given the ids that are looked up, everything that attends runs within it, and it has returned
when the next ids are looked up. What it is given is copied before it goes on, so that it can be
called again with the whole text.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from types import CodeType, FrameType, FunctionType, MethodType, ModuleType

from msgspec.structs import replace
from torch import Tensor, nn

from kvtrace.record.capture.replaced.stand_in import as_written
from kvtrace.record.capture.tokens.inputs import tokens_in
from kvtrace.record.driving.entrance import through
from kvtrace.record.lanes.as_it_was.outside import Outside
from kvtrace.record.lanes.as_it_was.snapshot import Snapshot, take

_FRAMES, _DEEP = 24, 1000
"""Callers that are looked at; all there may be."""

_MOST = 3
"""Of them, those that are given the ids and copied."""

LOOKS = 3
"""Steps after the first in which what it was given is looked at, for what holds the rows."""

_HOLDS = (list, tuple, dict)
_PLAIN = (type, FunctionType, ModuleType, nn.Module)

_SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_NOT_THEIRS = frozenset({"torch", "kvtrace"})


class Called(nn.Module):
    """Stands for a function that can be called again."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: object, **kwargs: object) -> object:
        """The function's result."""
        return self.function(*args, **kwargs)


@dataclass(slots=True)
class _Candidate:
    frame: FrameType
    snapshot: Snapshot
    outside: Outside | None


class StepFunction:
    """Looks for the function during the first step of a recording."""

    def __init__(self) -> None:
        """Nothing was found yet."""
        self._candidates: list[_Candidate] = []
        self._code: CodeType | None = None
        self._frame: FrameType | None = None
        self._looks = 0
        self._over = False

    def looked_up(self, ids: Tensor) -> None:
        """Ids are looked up: copy what the functions that run were given, where it is these.

        Args:
            ids: [sequences, new].
        """
        if self._over and self._code is not None and self._frame is None and self._looks < LOOKS:
            self._looks += 1
            self._frame = next((one for one in callers() if one.f_code is self._code), None)
        if self._over or self._candidates:
            return
        for frame in callers():
            made = _candidate(frame, ids)
            if made is not None:
                self._candidates.append(made)
            if len(self._candidates) == _MOST:
                return

    def attended(self) -> None:
        """Attention runs: within which of them?"""
        if self._candidates:
            running = {id(frame) for frame in callers()}
            self._candidates = [one for one in self._candidates if id(one.frame) in running]

    def found(self) -> tuple[str, Snapshot, Outside | None] | None:
        """The step is over: the innermost function that has returned, or the outermost method.

        What attends within a method may be a module that is watched on its own, and not told of.

        Returns:
            Its name, itself, and what it keeps elsewhere; nothing for a method of a model.
        """
        if self._over:
            return None
        self._over = True
        candidates, self._candidates = self._candidates, []
        running = {id(frame) for frame in callers(_DEEP)}
        functions = [one for one in candidates if one.outside is not None]
        methods = [one for one in candidates if one.outside is None]
        for one in (*reversed(methods), *functions):
            if id(one.frame) not in running:  # else it makes many steps
                self._frame, self._code = one.frame, one.frame.f_code
                return self._code.co_name, one.snapshot, one.outside
        return None

    def given(self) -> dict[str, object]:
        """What may hold rows of this step, by name: what it was given, globals, what it made."""
        frame, self._frame = self._frame, None
        if frame is None:
            return {}
        kept = {f"global {name}": one for name, one in frame.f_globals.items() if name[:2] != "__"}
        found = {**(_arguments(frame) or {}), **kept}
        made = {name: one for name, one in frame.f_locals.items() if name not in found}
        found |= {f"local {name}": one for name, one in made.items() if isinstance(one, _HOLDS)}
        return {name: one for name, one in found.items() if _may_hold(one)}


def made_by(frames: Iterable[FrameType]) -> dict[str, object]:
    """What code that runs may keep rows of a step in, by name: containers and numbers it made."""
    found: dict[str, object] = {}
    for frame in frames:
        made = {f"local {name}": one for name, one in frame.f_locals.items()}
        found |= {name: one for name, one in made.items() if name not in found}
    return {name: one for name, one in found.items() if isinstance(one, _HOLDS) and _may_hold(one)}


def theirs(frames: Iterable[FrameType]) -> list[FrameType]:
    """Those that run somebody's own code."""
    names = ((one, str(one.f_globals.get("__name__", ""))) for one in frames)
    return [one for one, name in names if name.partition(".")[0] not in _NOT_THEIRS]


def _may_hold(value: object) -> bool:
    """Whether a value may hold keys or values, and is no token id."""
    if isinstance(value, Tensor):
        return value.is_floating_point()
    if isinstance(value, list):
        return not all(type(one) is int for one in value)
    held = isinstance(value, dict | tuple) or hasattr(value, "__dict__")
    return held and not isinstance(value, _PLAIN)


def _candidate(frame: FrameType, ids: Tensor) -> _Candidate | None:
    """A function that runs, if it was given some ids and can be copied with all it was given."""
    code = frame.f_code
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    if code.co_flags & _SUSPENDS or code.co_name.startswith("<") or package in _NOT_THEIRS:
        return None
    arguments = _arguments(frame)
    given = None if arguments is None else tokens_in(arguments)
    if arguments is None or given is None or given[1].numel() != ids.numel():
        return None
    if not bool((given[1].flatten().to(ids.device) == ids.flatten()).all()):
        return None
    first = next(iter(arguments))
    own = arguments[first]
    if isinstance(own, nn.Module) and hasattr(type(own), code.co_name):
        del arguments[first]
        return _of_method(frame, own, arguments)
    return _of_function(frame, arguments)


def _of_method(frame: FrameType, own: nn.Module, arguments: dict[str, object]) -> _Candidate | None:
    """A method of a model that runs; none where it is the forward, which is called anyway."""
    name = frame.f_code.co_name
    snapshot = "" if name == "forward" else take(through(own, name), arguments)
    return None if isinstance(snapshot, str) else _Candidate(frame, snapshot, None)


def _of_function(frame: FrameType, arguments: dict[str, object]) -> _Candidate | None:
    """A function, or a method of something that is no module."""
    function = _function(frame)
    if function is None:
        return None
    held: Callable[..., object] = function
    if next(iter(arguments)) == "self":
        held = MethodType(function, arguments.pop("self"))
    snapshot = take(Called(held), arguments, weights_are_given=True)
    if isinstance(snapshot, str):
        return None
    parameters = inspect.signature(held).parameters
    call = replace(snapshot.call, parameters=parameters)
    return _Candidate(frame, replace(snapshot, call=call), Outside.of_file(frame.f_globals))


def _arguments(frame: FrameType) -> dict[str, object] | None:
    """What a function was given, by name, as its variables are now; None: some has no name."""
    code, values = frame.f_code, frame.f_locals
    count = code.co_argcount + code.co_kwonlyargcount
    names, rest = code.co_varnames[:count], code.co_varnames[count:]
    if any(name not in values for name in names):
        return None
    arguments = {name: values[name] for name in names}
    if code.co_flags & inspect.CO_VARARGS:
        if values.get(rest[0]):
            return None
        rest = rest[1:]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        arguments |= values.get(rest[0], {})
    return arguments


def _function(frame: FrameType) -> FunctionType | None:
    """The function that a frame runs: by its name, and else by who refers to its code.

    The collector knows nobody who refers to what a program froze (`gc.freeze`).
    """
    code: CodeType = frame.f_code
    own = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    caller = frame.f_back
    spaces = [frame.f_globals, *map(vars, type(own).__mro__)]
    spaces += [] if caller is None else [caller.f_locals]
    named = (space.get(code.co_name) for space in spaces)
    bare = (getattr(one, "__func__", one) for one in named)
    theirs = (inspect.unwrap(as_written(one)) for one in bare if isinstance(one, FunctionType))
    for one in chain(theirs, gc.get_referrers(code)):
        if isinstance(one, FunctionType) and one.__code__ is code:
            return one
    return None


def callers(most: int = _FRAMES) -> Iterator[FrameType]:
    """Frames that run, from the innermost on."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(most):
        if frame is None:
            return
        yield frame
        frame = frame.f_back
