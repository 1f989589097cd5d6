"""The function mode: every torch function passes here while a watched module runs.

What attention is made of is read, everything else is followed. The function itself always runs as
it was called, so results are the same bits as without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.capture.running import depth_of_our_work
from kvtrace.record.capture.symbolic import is_written_down
from kvtrace.record.flow.marks.follow import Args, Kwargs, followed
from kvtrace.record.flow.marks.names import KEEPS_PARAMETER
from kvtrace.record.flow.modes.listener import Listener
from kvtrace.record.flow.modes.products import Products
from kvtrace.record.flow.modes.run_once import Ran, without_override
from kvtrace.record.modes import Beneath


class FlowMode(Beneath):
    """Follows scores to outputs; one instance a thread.

    Attributes:
        products: Reads products, and whatever else attention is made of.
        marks, families: Theirs.
    """

    def __init__(self, listener: Listener, is_parameter: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.products = Products(listener, is_parameter)
        self.marks, self.families = self.products.marks, self.products.families
        self._marked, self._tainted = self.marks.held, self.products.tainted
        self._depth = 0
        self._listener = listener
        self._handlers = self.products.handlers
        self._handled = frozenset((*self._handlers, "multi_head_attention_forward"))

    def __enter__(self) -> Any:
        """Listen to what runs from here on, but to no work of ours in between."""
        self.listen()
        return super().__enter__()

    def listen(self) -> None:
        """Whatever is switched on later belongs to what runs now, not to work of ours in it."""
        self._depth = depth_of_our_work()

    @property
    def is_on_top(self) -> bool:
        """Whether it is the innermost mode, asked by what it listens to, with nothing followed."""
        length = torch._C._len_torch_function_stack()
        if not length or torch._C._get_function_stack_at(length - 1) is not self:
            return False
        return depth_of_our_work() == self._depth and not self._marked

    @property
    def is_idle(self) -> bool:
        """Whether nothing is followed whose values are still to come."""
        return not self._listener.loop.waiting and not self.families.live(self.marks)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See one torch function; called thousands of times a second."""
        name, named = getattr(func, "__name__", ""), kwargs or {}
        if "." in name:  # an operator as exported programs call it: aten's "softmax.int"
            name = name.partition(".")[0]
        if depth_of_our_work() != self._depth or self._is_nothing(name, args, named):
            return func(*args, **named)
        if is_written_down():
            return func(*args, **named)
        projects = name == "linear" and len(args) > 1 and type(args[1]) is nn.Parameter
        if projects and not self._listener.loop.waiting:
            out = func(*args, **named)
            self.products.last_parameter = args[1]
            return out
        if name == "multi_head_attention_forward":  # its body comes here again, call by call
            return self._multi_head(func, args, named)
        run = Ran(func, name)
        try:
            return self._followed(name, run, args, named)
        except Exception as error:
            if run.error is not None:
                raise
            self.forget()
            self._listener.failed(error)
            return run.result if run.done else func(*args, **named)

    def _is_nothing(self, name: str, args: Args, kwargs: Kwargs) -> bool:
        """Whether a function has nothing to do with attention: a glance, for most of a model."""
        if name in self._handled or self._listener.loop.waiting:
            return False
        if name in KEEPS_PARAMETER and args:
            first = args[0]
            if type(first) in (list, tuple):
                first = first[0] if first else None
            if type(first) is nn.Parameter or id(first) in self._tainted.held:
                return False
        held = self._marked
        if not held:
            return True
        if kwargs:
            return False
        for value in args:
            if id(value) in held or type(value) is list or type(value) is tuple:
                return False
        return True

    def _followed(self, name: str, run: Ran, args: Args, kwargs: Kwargs) -> Any:
        loop = self._listener.loop
        if loop.waiting and self._listener.consumed(name, args):
            out = self._seen(name, run, args, kwargs)
            loop.carry(out if isinstance(out, Tensor) else args[0])
            return out
        return self._seen(name, run, args, kwargs)

    def _seen(self, name: str, func: Any, args: Args, kwargs: Kwargs) -> Any:
        handler = self._handlers.get(name)
        if handler is not None:
            return handler(func, args, kwargs)
        if name in KEEPS_PARAMETER and args and self._tainted.makes(args, kwargs):
            out = func(*args, **kwargs)
            if isinstance(out, Tensor):
                self._tainted.add(out)
            return out
        if self._marked:
            return followed(self.marks, func, args, kwargs)
        return func(*args, **kwargs)

    def forget(self) -> None:
        """Drop all marks: a forward is over."""
        self.products.forget()

    def _multi_head(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """F.multi_head_attention_forward, looked into: its body with this mode on."""
        self.families.odd = True
        with self:
            return without_override(func)(*args, **kwargs)
