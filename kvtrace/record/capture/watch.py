"""Watches a model: every outermost forward becomes one `Forward`, given to a callback.

Joins the patches of the attention interface and of caches with hooks on the model. Everything is
undone on exit, whatever happened inside. Knows nothing of traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from os import getpid
from time import perf_counter_ns
from typing import Any

import torch
from torch import nn

from kvtrace.record.capture.attention.ahead import Ran
from kvtrace.record.capture.attention.levels import attentions, lower_levels, unseen
from kvtrace.record.capture.caches.handing import cache_given
from kvtrace.record.capture.caches.reordered import (
    has_own_methods,
    patch_given,
    patch_reordering,
)
from kvtrace.record.capture.caches.tracker import CacheTracker
from kvtrace.record.capture.caches.updates import CACHES, HALVES, follow
from kvtrace.record.capture.clock import DeviceClock, Took
from kvtrace.record.capture.forward import Beginning, Forward
from kvtrace.record.capture.forwards import Forwards
from kvtrace.record.capture.replaced.choices import CHOICES, Chooser
from kvtrace.record.capture.replaced.clean import CLEAN
from kvtrace.record.capture.replaced.compiled import EAGERLY, Eagerly
from kvtrace.record.capture.replaced.entrances import around_forward, entrances, is_asking
from kvtrace.record.capture.replaced.interface import INTERFACE
from kvtrace.record.capture.replaced.scripting import SCRIPTING
from kvtrace.record.capture.running import Pass, our_work, passes
from kvtrace.record.capture.symbolic import is_shape_only, is_symbolic, is_transformed, transformed
from kvtrace.record.capture.tokens.inputs import named, tokens_of
from kvtrace.record.capture.turns import Turns
from kvtrace.record.flow import FlowWatch
from kvtrace.record.modes import unseen_by_modes
from kvtrace.record.paged.follower import Follower
from kvtrace.record.theirs import CACHE

Callback = Callable[[Forward], None]


class Watch:
    """`with Watch(model, callback):` calls back at the end of every outermost forward.

    The callback runs before the forward returns; its time is not the forward's. Errors it raises
    pass through to the caller.
    """

    def __init__(
        self,
        model: nn.Module,
        on_forward: Callback,
        *,
        on_begin: Callable[[Beginning], None] | None = None,
        on_failure: Callable[[], None] | None = None,
        choosing: Callable[[], Chooser] | None = None,
        on_chosen: Callable[[int, int], None] | None = None,
    ) -> None:
        """Nothing is touched before `with`.

        Args:
            model: Any module; its outermost calls are watched, its encoder's too if it has one.
            on_forward: Given each finished forward.
            on_begin: Told of each forward that begins.
            on_failure: Told when one raised.
            choosing: Makes what is shown the selections of one forward; None: nobody asks.
            on_chosen: Told of tokens chosen for a request in a batch: (its cache, token).
        """
        self.model = model
        self.paused = False
        self._asks = False
        self._process = getpid()
        self._on_forward = on_forward
        self._on_begin = on_begin
        self._on_failure = on_failure
        self._choosing = choosing
        self._modules = dict(model.named_modules())
        self._names = {id(module): path for path, module in self._modules.items()}
        self._patched: type | None = None
        self._tracker = CacheTracker()
        self._clock = DeviceClock(one.device for one in model.parameters())
        self.flow: FlowWatch | None = None
        self._eagerly = Eagerly()
        self.turns = Turns()
        self._requests = Follower(self._tracker, on_chosen or (lambda _, __: None))
        self._forwards = Forwards(self._modules, self._names, self._tracker, self._requests)
        self._ran = Ran()
        self._takes: dict[int, Sequence[str]] = {}
        self.says: dict[str, None] = {}
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Watch:
        self._asks = is_asking()
        try:
            self._undo.append(self._eagerly.begin())
            for patches in (
                INTERFACE,
                CACHES,
                CLEAN,
                SCRIPTING,
                *([CHOICES] if self._choosing else ()),
            ):
                patches.hold()
                self._undo.append(patches.release)
            patch_reordering(self.model)
            self._undo += [follow(self._tracker), self._requests.listen()]
            flow = self.flow = lower_levels(self.model, self._modules)
            if flow is not None:
                flow.__enter__()
                self._undo.append(partial(flow.__exit__, None, None, None))
            for part, module in entrances(self.model):
                self.hook(part, module)
            self._undo.append(self._ran.listen(attentions(self._modules)))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def bind(self) -> None:
        """Only calls of this thread are watched."""
        self.turns.bind()

    @property
    def unseen(self) -> tuple[str, ...]:
        """Sentences: modules that look like attention and were not seen to attend so far."""
        odd = (
            f"{path}: attends over another batch than the model's"
            for path in sorted(self._forwards.reader.odd)
        )
        hidden = [
            f"{path}: rows not seen, it was handed none that its queries fit; what its cache keeps "
            "is read elsewhere"
            for path in self._forwards.reader.hidden
        ]
        reader = self._forwards.reader
        seen = reader.seen | reader.hidden.keys()
        if self.flow is not None:
            seen |= self.flow.relieving
        return (*unseen(self.model, seen, self._ran, self.flow), *odd, *hidden)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences: how the watching itself changed what is said, time above all."""
        also = (*self._requests.says, *self.turns.says, *self._ran.says, *self.says)
        also += (EAGERLY,) if self._eagerly.ran else ()
        if self.flow is None or not self.flow.followed:
            return also
        slower = "the data flow was followed: milliseconds include the time this took"
        return (slower, *also, *self.flow.notes)

    def _stop(self) -> None:
        with ExitStack() as undone:  # each of them, whatever another raises
            for undo in self._undo:
                undone.callback(undo)
            self._undo.clear()
            self.turns.close()

    @property
    def is_fork(self) -> bool:
        """Whether this is a fork of the process that watches."""
        return getpid() != self._process

    @property
    def _deaf(self) -> bool:
        """Whether a forward is nobody's business: another watch hears lanes of ours.

        Nor is what a fork of the process does: the file is its parent's. Where no numbers are,
        there is nothing to hear.
        """
        return is_symbolic() or self.paused or (is_asking() and not self._asks) or self.is_fork

    def _passes_by(self, module: nn.Module) -> bool:
        """Whether a call of an entrance is nobody's business; what torch.func runs is told of."""
        deaf = self._deaf
        if deaf and not (torch.compiler.is_compiling() or self.paused) and is_transformed():
            self.says[transformed(type(module).__name__)] = None
        return deaf

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Forwards of the model that begin inside are nobody's business."""
        before, self.paused = self.paused, True
        try:
            with nullcontext() if self.flow is None else self.flow.paused():
                yield
        finally:
            self.paused = before

    def begin_step(self, arguments: Mapping[str, object]) -> Pass | None:
        """A step begins that is no call of the model: some other code of it, or of nobody's."""
        if is_symbolic() or self.paused or self.is_fork:
            return None
        if self.flow is not None:
            self.flow.begin_step()
            self.flow.of_parts = True
        with unseen_by_modes():
            self._begin(arguments)
        return next((one for one in passes() if one.names is self._names), None)

    def end_step(self, arguments: Mapping[str, object], part: str) -> None:
        """It is over: a step of the "model" or of its "encoder"; "": of neither, forget it."""
        stop = perf_counter_ns()
        if self.flow is not None:
            self.flow.of_parts = False
        one = self._over()
        with unseen_by_modes(), nullcontext() if one is None else self.turns.ending():
            if one is not None and part:
                self._finish(part, self.model, one, arguments, None, self._clock.took(one, stop))
            elif self._on_failure is not None:
                self._on_failure()

    def hook(self, part: str, module: nn.Module) -> None:
        """Watch one entrance of the model: each call of it that is in no other one is a forward."""

        def begin(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._passes_by(module) and called is module:
                with unseen_by_modes():
                    self._begin(named(module, args, kwargs, self._takes), len(args))

        def end(
            called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
        ) -> None:
            deaf = self._deaf or called is not module
            stop = 0 if deaf else perf_counter_ns()
            one = None if deaf else self._over()
            if one is None:
                return
            with unseen_by_modes(), self.turns.ending():
                if result is not None:
                    arguments = named(module, args, kwargs, self._takes)
                    self._finish(part, module, one, arguments, result, self._clock.took(one, stop))
                elif self._on_failure is not None:
                    self._on_failure()

        def direct(run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._deaf:
                return run(*args, **kwargs)
            if any(one.names is self._names for one in passes()):
                with self._interruptible():
                    return run(*args, **kwargs)
            begin(module, args, kwargs)
            result = None
            try:
                result = run(*args, **kwargs)
                return result
            finally:
                end(module, args, kwargs, result)

        handles = (
            module.register_forward_pre_hook(begin, with_kwargs=True, prepend=True),
            module.register_forward_hook(end, with_kwargs=True, always_call=True),
        )
        self._undo += [handle.remove for handle in handles]
        self._undo.append(around_forward(module, direct))

    def _begin(self, arguments: Mapping[str, object], placed: int = 0) -> None:
        """A forward begins: the outermost one becomes a pass.

        Args:
            arguments: What it is given, by name.
            placed: So many of the first ones were given by place.
        """
        running = passes()
        for one in running:
            if one.names is self._names:
                one.nested += 1
                return
        if is_shape_only(arguments.values()) or not self.turns.begin():
            return
        given = cache_given(arguments)
        # a class of the model's own that is met late was followed by its rows so far, and stays so
        kind, first = type(given), self._forwards.count == 0 or CACHE.has(given)
        if first and (kind is not self._patched or has_own_methods(given)):
            patch_given(given)
            self._patched = None if hasattr(given, HALVES[0]) else kind
        flow = None if self.flow is None or self.flow.over else self.flow
        one = Pass(self._names, self._tracker, flow, self._choosing and self._choosing())
        try:
            self._requests.begin(one, arguments)
            if self._on_begin is not None:
                self._on_begin(self._beginning(arguments, placed, one))
        except BaseException:
            self.turns.end()
            raise
        running.append(one)
        self._clock.begin(one)

    def _over(self) -> Pass | None:
        """The pass that has ended now; None if it was an inner forward."""
        running = passes()
        places = [place for place, one in enumerate(running) if one.names is self._names]
        if not places:
            return None
        one = running[places[0]]
        if one.nested:
            one.nested -= 1
            return None
        del running[places[0] :]
        if self.flow is not None:
            self.flow.of_parts = False  # also where `begin_step` began what a hook ends
        return one

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """A forward that is interrupted in here, by Ctrl-C for one, is over, however deep it was.

        Even a hook that is always called is only called for an `Exception`.
        """
        try:
            yield
        except Exception:
            raise
        except BaseException:
            running = passes()
            place = next((i for i, one in enumerate(running) if one.names is self._names), None)
            if place is not None:
                running[place].nested = 0
                self._over()
                with self.turns.ending():
                    if self._on_failure is not None:
                        self._on_failure()
            raise

    def _beginning(self, arguments: Mapping[str, object], placed: int, one: Pass) -> Beginning:
        fed = self._requests.fed(one)
        return Beginning(
            arguments,
            tokens_of(arguments),
            self._forwards.given(arguments) | fed.keys(),
            tuple(self._tracker.changes),
            lambda: one.num_calls,
            one.kept_by,
            fed,
            tuple(arguments)[:placed],
        )

    def _finish(
        self,
        part: str,
        module: nn.Module,
        one: Pass,
        arguments: Mapping[str, object],
        result: Any,
        took: Took,
    ) -> None:
        """Hand over what the pass was."""
        forwards = self._forwards.of(part, module, one, arguments, result, took, self.flow)
        if not forwards and self._on_failure is not None:
            self._on_failure()
        with our_work():
            for each in forwards:
                self._on_forward(each)
