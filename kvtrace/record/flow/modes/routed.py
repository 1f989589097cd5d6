"""The function mode that knows the way: a call that goes a known route is not followed anew.

Functions on the way are only compared with those of the route. At the first that differs, and at
each call that is due for a full proof, what has run so far is followed after all, as if it had
been from the beginning; nothing is lost, and nothing is run twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor

from kvtrace.record.capture.running import depth_of_our_work
from kvtrace.record.capture.symbolic import is_written_down
from kvtrace.record.flow.calls.call import due, only_hides
from kvtrace.record.flow.marks.follow import Args, Kwargs
from kvtrace.record.flow.marks.names import DIVIDE, MULTIPLY
from kvtrace.record.flow.modes.learn import LONGEST, learn
from kvtrace.record.flow.modes.listener import Listener
from kvtrace.record.flow.modes.mode import FlowMode
from kvtrace.record.flow.modes.places import place
from kvtrace.record.flow.modes.route import Done, Route, Told, Walk

MOST = 8
"""Routes of one site that turned out not to be gone again, before no more are learnt."""

Site = tuple[str, int]
"""Path of a module, and which of its attention calls in a forward."""


class RoutedMode(FlowMode):
    """Follows scores to outputs, along known ways where it can.

    Attributes:
        routes: Of the sites, as far as known.
    """

    def __init__(self, listener: Listener, is_parameter: Callable[[Tensor], bool]) -> None:
        super().__init__(listener, is_parameter)
        self.routes: dict[Site, Route] = {}
        self._left: Counter[Site] = Counter()
        self._walk: Walk | None = None
        self._log: list[Done] | None = None
        self._log_of: tuple[Site, object] | None = None
        self._woken = False
        self._kept = self._handled - {*MULTIPLY, *DIVIDE, "sum"}

    def listen(self) -> None:
        """Nothing is under way."""
        super().listen()
        self._walk = self._log = self.products.ended = None
        self._woken = False

    def woken(self) -> None:
        """Switched on by a product that may be the first of an attention: the next function."""
        self._walk = self._log = self.products.ended = None
        self._woken = True

    def over(self) -> None:
        """A module is over: whatever was under way in it ends here."""
        frame = self._listener.frame
        if self._walk is not None and self._walk.frame is frame:
            self._leave(self._walk)
        if self._log_of is not None and self._log_of[1] is frame:
            self._log = self._log_of = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is followed whose values are still to come."""
        return self._walk is None and super().is_idle

    def forget(self) -> None:
        """Drop all that is followed: a forward is over."""
        self.products.forget()
        self._walk = self._log = self._log_of = self.products.ended = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See one torch function."""
        if depth_of_our_work() != self._depth:
            return func(*args, **(kwargs or {}))
        if self._walk is not None:
            return self._go_on(self._walk, func, args, kwargs or {})
        named = kwargs or {}
        if self._woken and not is_written_down():
            self._woken = False
            walk = self._set_out(func, args, named)
            if walk is not None:
                return self._go_on(walk, func, args, named)
        if self._log is None:
            return super().__torch_function__(func, types, args, kwargs)
        log = self._log
        out = super().__torch_function__(func, types, args, kwargs)
        if log is self._log:
            self._write_down(log, Done(func, tuple(args), named, out))
        return out

    # -- along a route -----------------------------------------------------------------------

    def _set_out(self, func: Any, args: Args, named: Kwargs) -> Walk | None:
        """The product that woke it begins a known route; if it does not, it may teach one."""
        site, frame = self._listener.site, self._listener.frame
        if site is None:
            return None
        route = self.routes.get(site)
        if route is not None and route.begins(func, args, named, self._listener.sizes_now):
            self._walk = Walk(route, site, frame, [], [], place()[0])
            return self._walk
        if self._left[site] < MOST:
            self._log, self._log_of = [], (site, frame)
        return None

    def _go_on(self, walk: Walk, func: Any, args: Args, named: Kwargs) -> Any:
        """One more function: the next one of the route, or not."""
        route, done = walk.route, walk.done
        stride, place_in = route.strides[len(done)], len(done) + 1
        if not stride.fits(func, args, named, walk.results):
            return self._leave_at(walk, func, args, named)
        last = place_in == len(route.strides)
        if last and (due(route.plan) or not self._arrives(walk, args)):
            return self._leave_at(walk, func, args, named)
        out = func(*args, **named)
        done.append(Done(func, tuple(args), named, out))
        if last:
            self._walk = None
            self._listener.walked(walk)
        elif stride.axes is not None:
            walk.results.append(out)
            if not isinstance(out, Tensor) or out.dim() != stride.axes:
                self._leave(walk)
        return out

    def _arrives(self, walk: Walk, args: Args) -> bool:
        route = walk.route
        if not route.ends(walk, args) or place()[0] != route.place:
            return False
        return not route.added or only_hides(walk)

    def _leave_at(self, walk: Walk, func: Any, args: Args, named: Kwargs) -> Any:
        """A function is none of the route, or is to be proved: it is followed."""
        self._leave(walk)
        return super().__torch_function__(func, (), args, named)

    def _leave(self, walk: Walk) -> None:
        """Follow what has run so far."""
        self._walk = None
        whole = len(walk.done) + 1 == len(walk.route.strides)
        if not (whole and due(walk.route.plan)):
            self._left[walk.site] += 1
            self.routes.pop(walk.site, None)
        self.products.scored = walk.scored
        try:
            for done in walk.done:
                super().__torch_function__(Told(done), (), done.args, done.named)
        finally:
            self.products.scored = None

    # -- learning one ------------------------------------------------------------------------

    def _write_down(self, log: list[Done], done: Done) -> None:
        """A function was followed: once the call is complete, its route is known."""
        mix, self.products.ended = self.products.ended, None
        log.append(done)
        if mix is None and len(log) < LONGEST and not self._is_made_of_parameters(done.args):
            return
        self._log = None
        site, plan = self._log_of, self._listener.plan_of_last
        self._log_of = None
        if mix is None or site is None or plan is None:
            return
        route = learn(log, mix, plan, self._listener.sizes_now, self._kept)
        if route is not None:
            self.routes[site[0]] = route

    def _is_made_of_parameters(self, args: Args) -> bool:
        return any(self._tainted.has(one) for one in args if isinstance(one, Tensor))
