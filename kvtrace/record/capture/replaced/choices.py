"""Discrete choices that a forward makes: which experts, which slots; told as they are made.

A selection by torch (topk, sort, argmax, max) inside a running forward is shown to the passes that
asked for it; one of them may put another result in its place. Names that a module has imported
them by are theirs too; what a closure holds, or compares with a threshold, is not seen.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter_ns
from types import FrameType, ModuleType
from typing import Any, Protocol

import torch
from msgspec import Struct
from torch import Tensor
from torch.jit._builtins import _find_builtin, _register_builtin

from kvtrace.record.capture.replaced.patch import Method, Patches
from kvtrace.record.capture.replaced.stand_in import in_place_of
from kvtrace.record.capture.running import our_work, passes
from kvtrace.record.modes import unseen_by_modes

_OURS = __name__.partition(".")[0] + "."
_LIBRARIES = {"torch", *sys.stdlib_module_names} - {"__main__"}
_MOST_FRAMES = 6
_INT16 = 1 << 15
_LOOKED_AT: dict[str, tuple[int, int]] = {}
"""Modules that bound none, and how many names they had: thousands, and every recording looks."""

_ALL_OPTIONS = 4096
"""A whole order of more options than this is no choice of a router."""


class Selection(Struct, frozen=True):
    """One call of a torch function that selects.

    Attributes:
        scores: What it selects from, the options last, [..., options].
        indices: What it selected, [..., k].
        ordered: All options are put in order, and how many of them count is not known.
        best: Whether the largest are selected; else the smallest.
        finish: Makes the function's own result of other indices.
        only: Nothing else is asked for; a maximum also serves to steady a softmax, with no use
            for the indices.
    """

    scores: Tensor
    indices: Tensor
    ordered: bool
    best: bool
    finish: Callable[[Tensor], Any]
    only: bool = True


class Choice(Struct, frozen=True):
    """What was selected, where.

    Attributes:
        module: Path of the module whose code selects; empty where there is none.
        number: How many selections the same module made before in this forward.
        options: How many there were to choose from.
        ordered: Of `Selection`.
        indices: [..., k], in a small integer type.
    """

    module: str
    number: int
    options: int
    ordered: bool
    indices: Tensor


class Chooser(Protocol):
    """Is shown each selection of a forward."""

    @property
    def choices(self) -> Sequence[Choice]:
        """What it kept of them."""

    def see(self, module: str, selection: Selection) -> Any | None:
        """Another result for it; None: as it is."""


@dataclass(slots=True)
class Noted:
    """Keeps what was selected.

    Attributes:
        choices: So far, in order.
    """

    choices: list[Choice] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)

    def see(self, module: str, selection: Selection) -> None:
        """Keep it; where everything is taken, there is no choice, but it counts."""
        number = self._counts.get(module, 0)
        self._counts[module] = number + 1
        options, taken = selection.scores.shape[-1], selection.indices.shape[-1]
        if taken == options and not (selection.ordered and options <= _ALL_OPTIONS):
            return
        kind = torch.int16 if options < _INT16 else torch.int32
        indices = selection.indices.detach().to(kind, copy=True)
        self.choices.append(Choice(module, number, options, selection.ordered, indices))


@functools.cache
def _shown(original: Method, read: Callable[..., Selection | None]) -> Method:
    """A torch function that shows what it selects; for code that is scripted meanwhile, torch's.

    Made once: the compiler knows functions by their identity.
    """
    known = _find_builtin(original)  # type: ignore[no-untyped-call]

    def select(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        running = passes()
        if not running or all(one.choosing is None for one in running):
            return result
        caller = sys._getframe(1)
        if str(caller.f_globals.get("__name__", "")).startswith(_OURS):
            return result
        start = perf_counter_ns()
        # the forward is not ours to break, whatever is selected from
        with our_work(), unseen_by_modes(), torch.no_grad(), suppress(Exception):
            scores, *more = args if args else (kwargs.pop("input"),)
            result = _told(read(result, scores, *more, **kwargs), result, caller)
        running[-1].own_ns += perf_counter_ns() - start
        return result

    shown: Method = in_place_of(original, select)
    if known is not None:
        _register_builtin(shown, known)
    return shown


def _told(selection: Selection | None, result: Any, caller: FrameType) -> Any:
    """The result, after everybody has seen the selection."""
    if selection is None:
        return result
    for one in passes():
        if one.choosing is not None:
            other = one.choosing.see(_module(caller, one.names), selection)
            result = result if other is None else other
    return result


def _module(frame: FrameType | None, names: Mapping[int, str]) -> str:
    """Path of the innermost module of the model whose method runs."""
    for _ in range(_MOST_FRAMES):
        if frame is None:
            break
        path = names.get(id(frame.f_locals.get("self")))
        if path is not None:
            return path
        frame = frame.f_back
    return ""


def _topk(
    result: Any, scores: Tensor, k: int, dim: int = -1, largest: bool = True, *_: Any, **more: Any
) -> Selection | None:
    if more.get("out") is not None or scores.dim() == 0:
        return None
    return _pair(result, scores, dim, ordered=False, best=largest)


def _sort(
    result: Any, scores: Tensor, dim: int = -1, descending: bool = False, **more: Any
) -> Selection | None:
    if more.get("out") is not None or scores.dim() == 0:
        return None
    return _pair(result, scores, dim, ordered=True, best=descending)


def _argsort(
    result: Tensor, scores: Tensor, dim: int = -1, descending: bool = False, **_: Any
) -> Selection | None:
    if scores.dim() == 0:
        return None

    def finish(indices: Tensor) -> Tensor:
        return indices.movedim(-1, dim)

    whole, indices = scores.detach().movedim(dim, -1), result.movedim(dim, -1)
    return Selection(whole, indices, True, descending, finish)


def _argmax(
    result: Tensor, scores: Tensor, dim: int | None = None, keepdim: bool = False, **_: Any
) -> Selection | None:
    if dim is None or scores.dim() == 0:
        return None

    def finish(indices: Tensor) -> Tensor:
        return indices.movedim(-1, dim) if keepdim else indices[..., 0]

    indices = result.movedim(dim, -1) if keepdim else result[..., None]
    return Selection(scores.detach().movedim(dim, -1), indices, False, True, finish)


def _max(
    result: Any, scores: Tensor, dim: Any = None, keepdim: bool = False, **more: Any
) -> Selection | None:
    if not isinstance(dim, int) or more.get("out") is not None or scores.dim() == 0:
        return None

    def finish(indices: Tensor) -> Any:
        # the largest stays the largest: a softmax subtracts it
        found = indices.movedim(-1, dim) if keepdim else indices[..., 0]
        return type(result)((result.values, found))

    found: Tensor = result.indices
    indices = found.movedim(dim, -1) if keepdim else found[..., None]
    whole = scores.detach().movedim(dim, -1)
    return Selection(whole, indices, False, True, finish, only=False)


def _pair(result: Any, scores: Tensor, dim: int, *, ordered: bool, best: bool) -> Selection:
    """Of a function that gives values and indices along an axis."""

    def finish(indices: Tensor) -> Any:
        back = indices.movedim(-1, dim)
        return type(result)((scores.gather(dim, back), back))

    found: Tensor = result.indices
    return Selection(
        scores.detach().movedim(dim, -1), found.movedim(dim, -1), ordered, best, finish
    )


_READERS: dict[str, Callable[..., Selection | None]] = {
    "topk": _topk,
    "sort": _sort,
    "argsort": _argsort,
    "argmax": _argmax,
    "max": _max,
}


def _install(patches: Patches) -> None:
    selecting = {id(getattr(torch, name)): name for name in _READERS}
    imported = list(_imported(selecting))
    for name, read in _READERS.items():
        for owner in (torch, Tensor):
            patches.replace(owner, name, functools.partial(_shown, read=read))
    for module, bound, name in imported:
        patches.replace(module, bound, functools.partial(_shown, read=_READERS[name]))


def _imported(selecting: Mapping[int, str]) -> Iterator[tuple[ModuleType, str, str]]:
    """(module, name there, torch's name) of each function that was imported by name."""
    for path, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or path.partition(".")[0] in _LIBRARIES:
            continue
        now = (id(module), len(vars(module)))
        if _LOOKED_AT.get(path) == now:
            continue
        _LOOKED_AT[path] = now
        for bound, value in list(vars(module).items()):
            if id(value) in selecting:
                _LOOKED_AT.pop(path, None)
                yield module, bound, selecting[id(value)]


CHOICES = Patches(_install)
"""The patches of what selects; held by watchers that want to know."""
