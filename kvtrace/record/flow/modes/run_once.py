"""A function of the model that is run once, whoever asks: what keeps our faults from being its.

Whoever follows the data flow may fail on a tensor nobody foresaw. The model's function has then
run, or has not; its result must reach the model either way, and an error of its own must too.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from kvtrace.record.flow.marks.follow import Function


class Ran:
    """A torch function, and what became of it.

    Attributes:
        done: It has returned; `result` is what.
        error: What it raised itself.
    """

    __slots__ = ("__name__", "done", "error", "function", "result")

    def __init__(self, function: Function, name: str) -> None:
        self.function = function
        self.__name__ = name
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        try:
            self.result = self.function(*args, **kwargs)
        except Exception as error:
            self.error = error
            raise
        self.done = True
        return self.result


def without_override(function: types.FunctionType) -> Callable[..., Any]:
    """The same code, not handing itself to a mode again."""
    names = {**function.__globals__, "has_torch_function": lambda *_: False}
    same = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    same.__kwdefaults__ = function.__kwdefaults__
    return same
