"""The function mode asleep: only products are listened for, and the first one wakes it.

A mode is asked before every torch function, and that alone costs a tenth of a model. All that is
followed begins with a product of two tensors that are no parameters. So the functions that make
one are replaced while a forward runs; the mode is on from a product of queries and keys until the
weights have met the values, and off elsewhere. What is followed, and how, stays the same.

Which forwards are slept through, `asleep` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.capture.replaced.overlay import Overlay, Overlays
from kvtrace.record.capture.running import depth_of_our_work
from kvtrace.record.flow.modes.asleep import Learnt
from kvtrace.record.flow.modes.heard import Hearing
from kvtrace.record.flow.modes.mode import FlowMode
from kvtrace.record.flow.modes.modules import Frame
from kvtrace.record.flow.modes.producers import FUNCTIONS, METHODS, SOFTMAX, imported
from kvtrace.record.flow.modes.routed import RoutedMode
from kvtrace.record.modes import FUNCTION_MODES, beneath

_stack_length = torch._C._len_torch_function_stack

_FEWER = (
    "attention of a step before was not seen, where its code changed; or it skipped a layer there"
)


@dataclass(slots=True)
class Waking:
    """Switches a mode on and off.

    Attributes:
        mode: It.
        tell: Given a sentence about a module's path.
        hearing: Hears forwards that need not be followed at all.
        slept: Forwards that were slept through.
    """

    mode: RoutedMode
    tell: Callable[[str, str], None]
    hearing: Hearing
    slept: int = 0
    _listens: bool = False
    _trial: bool = False
    _awake: bool = False
    _thread: int = 0
    _base: int = 0
    _depth: int = 0
    _learnt: dict[str, Learnt] = field(default_factory=dict)
    _methods: list[Overlay] = field(default_factory=list)
    _functions: Overlays | None = None

    def stop(self) -> None:
        """Give all functions back."""
        for path, known in self._learnt.items():
            if known.missed():
                self.tell(path, _FEWER)
        while self._methods:
            self._methods.pop().stop()
        self._functions = None

    @contextmanager
    def around(self, frame: Frame, modules: Iterable[str]) -> Iterator[None]:
        """A forward with nothing watched around it.

        Args:
            frame: Its.
            modules: Names of the Python modules that the model's code is in.
        """
        known = self._learnt.setdefault(frame.path, Learnt())
        sleeps, trial = known.begin()
        self.mode.families.look()
        with self._replaced(modules) if sleeps or trial else nullcontext():
            try:
                if sleeps:
                    self.slept += 1
                    self.mode.listen()
                    self.hearing.begin(frame)
                    with self._asleep():
                        yield
                    self.hearing.over(frame)
                else:
                    self._trial = trial
                    if trial:
                        self.hearing.begin(frame, awake=True)
                    with self.mode:
                        yield
                    self.hearing.over(frame)
            finally:
                self._trial = False
                self.hearing.stop()
        if known.over(frame.attended, self.mode.families, slept=sleeps, trial=trial):
            self.tell(frame.path, _FEWER)

    # -- while a forward runs --------------------------------------------------------------

    @contextmanager
    def _replaced(self, modules: Iterable[str]) -> Iterator[None]:
        """The functions replaced; those of tensors stay so until all is over."""
        functions = self._functions
        if functions is None:
            places = [*FUNCTIONS, *SOFTMAX, *imported(modules)]
            functions = self._functions = Overlays(places, self._wrapper)
            names = (*METHODS, "softmax")
            self._methods = [Overlay(Tensor, name, self._method(name)) for name in names]
        functions.start()
        self._thread, self._base = get_ident(), _stack_length()
        self._depth, self._listens = depth_of_our_work(), True
        try:
            yield
        finally:
            self._listens = False
            functions.stop()

    @contextmanager
    def _asleep(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._rest(always=True)

    def _method(self, name: str) -> Callable[[Overlay], Any]:
        original = getattr(Tensor, name)
        return lambda _: self._wrapper(original)

    def _wrapper(self, original: Any) -> Any:
        name = getattr(original, "__name__", "")
        linear, softmax = name == "linear", name == "softmax"
        product = self._softmax if softmax else self._product
        heard = self._softmax if softmax else self._heard
        me, parameter, hearing = self, nn.Parameter, self.hearing

        def function(*args: Any, **kwargs: Any) -> Any:
            if not me._listens or (linear and len(args) > 1 and type(args[1]) is parameter):
                return original(*args, **kwargs)
            return (heard if hearing.follows else product)(original, args, kwargs)

        return function

    def _product(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function that makes products is called, by whomever."""
        if get_ident() != self._thread or self._within_another:
            return original(*args, **kwargs)
        on = _stack_length() > self._base
        if self._trial:
            if not on:  # called by the mode
                return original(*args, **kwargs)
            self.mode.families.announced = True
            # somebody else's mode may be taken off in place of ours
            self.mode.families.odd |= not self._only_ours(1) or _is_numbered(original, args)
            if self.mode.is_idle and not self._is_none(args):
                self.mode.woken()
            try:
                out = original(*args, **kwargs)
            finally:
                self.mode.families.announced = False
            self._note(original, args, kwargs, out)
            return out
        if self._awake:
            if not on:
                return original(*args, **kwargs)
        elif not self._wakes(args, on):
            return original(*args, **kwargs)
        out = original(*args, **kwargs)
        self._note(original, args, kwargs, out)
        self._rest()
        return out

    def _note(self, original: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Learn what a forward like this one will sound like."""
        if self.hearing.learns and not self._is_none(args):
            self.hearing.note(original, args, kwargs, out)

    def _heard(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same in a forward of which only the score is heard."""
        if get_ident() != self._thread or self._is_none(args) or self._within_another:
            return original(*args, **kwargs)
        if _stack_length() > self._base or not self.hearing.expects(original):
            self.hearing.leave()
            return self._product(original, args, kwargs)
        out = original(*args, **kwargs)
        self.hearing.note(original, args, kwargs, out)
        return out

    def _softmax(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A softmax is called: nothing wakes, but it is heard."""
        out = original(*args, **kwargs)
        hearing = self.hearing
        heard = (hearing.follows or hearing.learns) and not self._within_another
        if heard and get_ident() == self._thread:
            ours = self._is_none(args) or not (hearing.learns or hearing.expects(original))
            if not ours:
                hearing.note(original, args, kwargs, out)
        return out

    @property
    def _within_another(self) -> bool:
        """Whether a mode that was on before the forward began calls a function that was seen."""
        return _stack_length() < self._base

    def _is_none(self, args: tuple[Any, ...]) -> bool:
        """Whether a function is work of ours, or is given a parameter."""
        for one in args:
            if type(one) is nn.Parameter:
                return True
        return depth_of_our_work() != self._depth or torch._C._is_torch_function_all_disabled()

    def _wakes(self, args: tuple[Any, ...], on: bool) -> bool:
        """Switch the mode on, if a product of these may be the first of an attention."""
        if self._is_none(args):
            return False
        if on and not self._only_ours(0):
            self.mode.families.odd = True
            return False
        self._switch_on()
        self.mode.woken()
        return True

    def _switch_on(self) -> None:
        with beneath(FUNCTION_MODES):
            FUNCTION_MODES.push(self.mode)
        self._awake = True

    def wake(self) -> None:
        """Switch the mode on for the rest of a forward that is slept through.

        For what makes no products, or none that can be heard: torch's fused layers.
        """
        if self._listens and not (self._trial or self._awake) and self._only_ours(0):
            self._switch_on()

    def _only_ours(self, mine: int) -> bool:
        """Whether all modes that were switched on since the forward began follow the flow."""
        at = torch._C._get_function_stack_at
        above = range(self._base + mine, _stack_length())
        return all(isinstance(at(place), FlowMode) for place in above)

    def _rest(self, *, always: bool = False) -> None:
        """Switch the mode off, if nothing is followed any more."""
        if not self._awake or not (always or self.mode.is_idle):
            return
        if FUNCTION_MODES.top is self.mode:
            with beneath(FUNCTION_MODES):
                FUNCTION_MODES.pop()
            self._awake = False

    def rest(self) -> None:
        """A module is over; what it followed may be gone."""
        if self._awake or self._trial:
            self.mode.over()
            self._rest()


def _is_numbered(original: Any, args: tuple[Any, ...]) -> bool:
    """Whether an einsum numbers its axes: torch spells them as letters for modes alone."""
    name = getattr(original, "__name__", "")
    return name == "einsum" and bool(args) and not isinstance(args[0], str)
