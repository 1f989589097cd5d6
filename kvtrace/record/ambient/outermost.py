"""Every outermost call of a module in the process, whoever makes it and however.

`nn.Module.__call__` is replaced while watching, and `forward` of every class that is not torch's
own, those included that are defined meanwhile: some call `.forward()` themselves. All of it is
given back at the end.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn

from kvtrace.record.ambient.met import kind_of
from kvtrace.record.ambient.stepped import (
    rows_given,
    run_as_step,
    run_within,
    stepping_methods,
)
from kvtrace.record.capture.replaced.compiled import EAGERLY
from kvtrace.record.capture.replaced.entrances import is_asking
from kvtrace.record.capture.replaced.overlay import Overlay
from kvtrace.record.capture.replaced.scripting import SCRIPTING
from kvtrace.record.capture.symbolic import is_symbolic, is_transformed, transformed
from kvtrace.record.capture.watch import Watch

Run = Callable[[], Any]
Around = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Run], Any]
"""(module, arguments, keyword arguments, the call) → its result."""
StepsOf = Callable[[nn.Module, str, tuple[object, ...]], AbstractContextManager[Watch | None]]
"""(module, name of rows that a method is given, kind of call) → what takes the call as a step."""

_THROUGH = {
    "OptimizedModule",
    "DataParallel",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
}
"""Modules that only stand around another one."""

_OWN = ("torch.", "kvtrace.")


PATIENCE_S = 5.0
"""How long a call in another thread is waited for; one that takes longer is waited for no more."""


class _Here(threading.local):
    inside = False


class Outermost:
    """`with Outermost(around):` puts something around each outermost call.

    Attributes:
        compiled: Something compiled was called.
    """

    def __init__(self, around: Around, steps_of: StepsOf) -> None:
        """Nothing is replaced before `with`."""
        self._around, self._steps_of = around, steps_of
        self.compiled = False
        self._scripted: dict[str, None] = {}
        self._transformed: dict[str, None] = {}
        self._here = _Here()
        self._turn, self._waits = threading.RLock(), True
        self._overlays: list[Overlay] = []
        self._known: set[type] = set()

    def __enter__(self) -> Outermost:
        SCRIPTING.hold()
        self._replace_call()
        for kind in list(_subclasses(nn.Module)):
            self._replace_forward(kind)
        self._replace_birth()
        return self

    def __exit__(self, *_: object) -> None:
        while self._overlays:
            self._overlays.pop().stop()
        self._known.clear()
        SCRIPTING.release()

    @property
    def inside(self) -> bool:
        """Whether a module is running, in this thread."""
        return self._here.inside

    @property
    def says(self) -> tuple[str, ...]:
        """Sentences: what could not be looked into, or only in another way than it ran."""
        scripted = (
            f"{name}: torch.jit runs it and shows nothing of what it does; record the model that "
            "it was made of"
            for name in self._scripted
        )
        return (
            *scripted,
            *map(transformed, self._transformed),
            *((EAGERLY,) if self.compiled else ()),
        )

    @contextmanager
    def off(self) -> Iterator[None]:
        """Calls made inside, in this thread, are ours."""
        before, self._here.inside = self._here.inside, True
        try:
            yield
        finally:
            self._here.inside = before

    def _enter(
        self, original: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        here = self._here
        if type(module).__name__ == "OptimizedModule":
            self.compiled = True
        if isinstance(module, torch.jit.ScriptModule) and not (here.inside or is_asking()):
            self._scripted[str(getattr(module, "original_name", type(module).__name__))] = None
            return original(module, *args, **kwargs)
        if here.inside or is_asking() or type(module).__name__ in _THROUGH:
            return original(module, *args, **kwargs)
        if is_symbolic():
            if is_transformed():
                self._transformed[type(module).__name__] = None
            with self.off():
                return original(module, *args, **kwargs)
        here.inside = True
        try:
            run = functools.partial(original, module, *args, **kwargs)
            with self.in_turn():
                return self._around(module, args, kwargs, run)
        finally:
            here.inside = False

    def _enter_method(
        self, original: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """A method of a module that may be a step, where it is given rows."""
        given = None
        if not (is_asking() or is_symbolic()):
            given = rows_given(original, module, args, kwargs)
        if given is None:
            return original(module, *args, **kwargs)
        kind = kind_of(module, args, kwargs)
        with self.in_turn(), self._steps_of(module, next(iter(given)), kind) as watch:
            if watch is not None:
                with self.off():
                    return run_as_step(watch, original, given, (module, args, kwargs))
        return original(module, *args, **kwargs)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Calls of several threads run one after the other: a model is followed in one at a time.

        One may wait for another within its call. That is found out once, by waiting.
        """
        mine = self._turn.acquire(timeout=PATIENCE_S if self._waits else 0)
        self._waits = self._waits and mine
        try:
            yield
        finally:
            if mine:
                self._turn.release()

    def _replace_call(self) -> None:
        enter, here = self._enter, self._here

        def make(overlay: Overlay) -> Any:
            original = overlay.under

            def call(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
                if here.inside or overlay.over:
                    return original(module, *args, **kwargs)
                return enter(original, module, args, kwargs)

            return call

        self._overlays.append(Overlay(nn.Module, "__call__", make))

    def _replace_forward(self, kind: Any) -> None:
        """Of one class, if it is somebody's own."""
        if kind in self._known or f"{kind.__module__}.".startswith(_OWN):
            return
        self._known.add(kind)
        for name in list(stepping_methods(kind)):
            self._replace_method(kind, name)
        if not isinstance(_forward(kind), FunctionType):
            return
        enter, here = self._enter, self._here

        def make(overlay: Overlay) -> Any:
            original = overlay.under

            def forward(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
                if here.inside or overlay.over:
                    return original(module, *args, **kwargs)

                def run(*given: Any, **named: Any) -> Any:
                    # who began to watch the model has put something upon this since it was bound
                    upon = overlay.upon if here.inside else None
                    return (upon or original)(*given, **named)

                return enter(run, module, args, kwargs)

            return forward

        self._overlays.append(Overlay(kind, "forward", make))

    def _replace_method(self, kind: Any, name: str) -> None:
        """Another method of somebody's own class."""
        enter, here = self._enter_method, self._here

        def make(overlay: Overlay) -> Any:
            original = overlay.under

            def method(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
                if overlay.over:
                    return original(module, *args, **kwargs)
                if here.inside:
                    return run_within(original, module, args, kwargs)
                return enter(original, module, args, kwargs)

            return method

        self._overlays.append(Overlay(kind, name, make))

    def _replace_birth(self) -> None:
        """Classes that are defined from now on."""
        module: Any = nn.Module
        replace = self._replace_forward

        def make(overlay: Overlay) -> Any:
            def born(kind: Any, /, **named: Any) -> None:
                if overlay.under is None:
                    super(module, kind).__init_subclass__(**named)
                else:
                    overlay.under.__func__(kind, **named)
                if not overlay.over:
                    replace(kind)

            return classmethod(born)

        self._overlays.append(Overlay(module, "__init_subclass__", make))


def _forward(kind: type) -> Any:
    """A class's own `forward`."""
    return kind.__dict__.get("forward")


def _subclasses(kind: type) -> Iterator[type]:
    """All classes below one, each once."""
    seen: set[type] = set()
    waiting: list[type] = [kind]
    while waiting:
        below: list[type] = type.__subclasses__(waiting.pop())
        for one in below:
            if one not in seen:
                seen.add(one)
                waiting.append(one)
                yield one
