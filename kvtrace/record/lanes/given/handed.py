"""Arguments that a text is given only once it has gone on without: state that a step handed back.

A memory of segments is one: when a segment is full, its cache is emptied, and what was summed up of
it is given instead. A cache is given from the first step on that goes on with a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from torch import Tensor, UntypedStorage

from kvtrace.record.capture.forward import Forward
from kvtrace.record.nested import tensors_in
from kvtrace.text import safe
from kvtrace.trace import Step, Trace

_DEEP = 3

_Place = tuple[int, int]
"""Where a tensor's memory begins, and its size."""

_Names = tuple[frozenset[str], frozenset[str]]
"""Arguments that held numbers, and of them those that the step before had handed back."""


@dataclass(slots=True)
class Handed:
    """By step, the arguments that held numbers, and those that the step before had handed back."""

    _given: dict[int, _Names] = field(default_factory=dict)
    # most steps are given the same: one pair for all of them
    _alike: dict[_Names, _Names] = field(default_factory=dict)
    _before: frozenset[str] = frozenset()
    _left: Set[_Place] = frozenset()
    _states: set[str] = field(default_factory=set)

    def add(self, step: int, forward: Forward) -> None:
        """A forward became a step."""
        arguments = forward.arguments
        given = frozenset(
            name for name, one in arguments.items() if next(_numbers(one), None) is not None
        )
        # what the step before was given, too, is none that comes late
        late = given - self._before
        back = frozenset(name for name in late if _places(arguments[name]) & self._left)
        self._given[step] = self._alike.setdefault((given, back), (given, back))
        self._before, self._left = given, _places(forward.result)

    def state(self, trace: Trace, step: Step) -> str:
        """The argument in which a step is given such state; empty: it is given none.

        Args:
            trace: Whose step.
            step: The next one.
        """
        given, back = self._given.get(step.number, (frozenset(), frozenset()))
        if given:
            self._states |= {name for name in back if self._is_late(trace, step, name)}
        return safe(min(given & self._states, default=""))

    def _is_late(self, trace: Trace, step: Step, name: str) -> bool:
        """Whether its text, or the one that it ends by emptying its cache, went on without."""
        number = step.number - 1 if step.parent is None else step.parent
        if number < trace.numbers[0]:
            return False
        begun = trace.step(number)
        both = (self._given.get(one) for one in (begun.number, begun.parent) if one is not None)
        without = [one is not None and name not in one[0] for one in both]
        return len(without) == 2 and all(without)


def _numbers(value: object) -> Iterator[UntypedStorage]:
    """The memory of the numbers in a value that are no ids."""
    for one in tensors_in(value, _DEEP):
        if type(one) is Tensor and one.is_floating_point() and one.numel():
            yield one.untyped_storage()


def _places(value: object) -> Set[_Place]:
    """Where the numbers in a value lie."""
    return {(one.data_ptr(), one.nbytes()) for one in _numbers(value)}
