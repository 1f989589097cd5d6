"""Modes of torch: those of the program see what it does, ours lie beneath them and see the same.

A mode is shown whatever runs while it is on. One of the program's, that counts or writes down or
changes what runs, is shown nothing of ours: it is off while we work, and what one of ours does
when it is shown something runs below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext


class _Stack(NamedTuple):
    """The modes of one kind that are on in this thread, outermost first."""

    length: Callable[[], int]
    at: Callable[[int], Any]
    push: Callable[[Any], None]
    pop: Callable[[], Any]

    @property
    def top(self) -> Any:
        """The mode that is shown everything first, of those that are ours; None: there is none."""
        length = self.length()
        while length and _is_foreign(self.at(length - 1)):
            length -= 1
        return self.at(length - 1) if length else None

    @property
    def is_foreign(self) -> bool:
        """Whether the mode that is shown everything first is the program's."""
        length = self.length()
        return length > 0 and _is_foreign(self.at(length - 1))

    def lift(self) -> list[Any]:
        """Take the program's modes off; they are always above ours."""
        lifted = []
        while self.is_foreign:
            lifted.append(self.pop())
        return lifted

    def lower(self, lifted: list[Any]) -> None:
        """Put them back."""
        while lifted:
            self.push(lifted.pop())


FUNCTION_MODES = _Stack(
    torch._C._len_torch_function_stack,
    torch._C._get_function_stack_at,
    torch._C._push_on_torch_function_stack,
    torch._C._pop_torch_function_stack,
)
"""Modes that are shown torch's functions."""

OPERATOR_MODES = _Stack(
    torch._C._len_torch_dispatch_stack,
    torch._C._get_dispatch_stack_at,
    torch._C._push_on_torch_dispatch_stack,
    lambda: torch._C._pop_torch_dispatch_stack(None),
)
"""Modes that are shown the operators that functions are made of."""


def _is_foreign(mode: Any) -> bool:
    """Whether a mode is the program's; the one that says where tensors are made is everybody's."""
    return not (type(mode).__module__.startswith("kvtrace.") or isinstance(mode, DeviceContext))


@contextmanager
def beneath(stack: _Stack) -> Iterator[None]:
    """A mode of ours that is switched on or off inside lies beneath those of the program."""
    lifted = stack.lift()
    try:
        yield
    finally:
        stack.lower(lifted)


class Beneath(TorchFunctionMode):
    """A function mode of ours, beneath those of the program."""

    def __enter__(self) -> Any:
        """On, from here."""
        with beneath(FUNCTION_MODES):
            return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *why: object) -> None:
        """Off again."""
        with beneath(FUNCTION_MODES):
            super().__exit__(*why)  # type: ignore[no-untyped-call]


def unseen_by_modes() -> AbstractContextManager[None]:
    """What runs inside is ours: no mode of the program is shown it."""
    return (
        _without_foreign()
        if FUNCTION_MODES.is_foreign or OPERATOR_MODES.is_foreign
        else nullcontext()
    )


@contextmanager
def _without_foreign() -> Iterator[None]:
    with beneath(FUNCTION_MODES), beneath(OPERATOR_MODES):
        yield
