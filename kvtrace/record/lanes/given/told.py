"""Arguments that say of each token where its row lies, as a pool of blocks asks: step by step.

A slot for each new token, a table of blocks that grows, a length: what a first call was given says
nothing of later tokens. What later calls were given does. Positions and masks are not taken from
there, they go on by rule: a step that was given a wrong one must differ. A prompt's length stays
what all of them were told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.given.first_call import FirstCall
from kvtrace.record.lanes.paths import Path

_MOST = 65536
"""Numbers in an argument, at most: more are no places of a few rows."""

_BY_RULE = re.compile(r"pos|mask|bias", re.IGNORECASE)

_OF_PROMPT = re.compile(r"prompt|prefix|prefill|context|source|src", re.IGNORECASE)
"""Numbers that stay what they were when the text goes on."""


class _Call(Struct, frozen=True):
    """What one step was given, and the stretch of its path that it is."""

    start: int
    end: int
    given: Mapping[str, Tensor]


@dataclass(slots=True)
class Told:
    """By step, the whole numbers that a call with one sequence was given."""

    _steps: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)

    def add(self, step: int, forward: Forward, ids: str) -> None:
        """A forward became a step.

        Args:
            step: Its number.
            forward: What ran.
            ids: Name of the argument with its tokens.
        """
        if forward.sequences == 1:
            self.keep(step, {n: one for n, one in forward.arguments.items() if n != ids})

    def keep(self, step: int, given: Mapping[str, object]) -> None:
        """Keep the numbers among what a call with one sequence was given, or told."""
        numbers = {name: _numbers(one) for name, one in given.items() if not _BY_RULE.search(name)}
        self._steps[step] = {name: one for name, one in numbers.items() if one is not None}

    def of(self, paths: Sequence[Path], call: FirstCall) -> dict[str, object]:
        """What a call with a whole path is given of it, by name; nothing where that is not known.

        Args:
            paths: One of them.
            call: The first one, in whose form arguments are given.
        """
        calls = self._along(paths[0]) if len(paths) == 1 else []
        if len(calls) < 2 or calls[0].end < 2:
            return {}
        found: dict[str, object] = {}
        for name, first in calls[0].given.items():
            each = [one.given[name] for one in calls if name in one.given]
            if name not in call.arguments or len(each) < len(calls):
                continue
            if not all(torch.equal(first, one) for one in each):
                found[name] = _as(_whole(calls, each), call.arguments[name])
        return found

    def twice(self, path: Path) -> tuple[str, int, int] | None:
        """The first token that is given a number of an earlier one's, where others have their own.

        Two rows in one place, if it is where rows lie: (name, place of the earlier, its own place).
        """
        calls = self._along(path)
        for name, first in calls[0].given.items() if len(calls) > 1 else ():
            numbers: dict[int, int] = {}
            each = [one.given[name].flatten().tolist() for one in calls if name in one.given]
            fits = [len(one) for one in each] == [one.end - one.start for one in calls]
            if not fits or len(set(each[0])) < max(2, first.numel()):
                continue
            for place, number in enumerate(one for part in each for one in part):
                if numbers.setdefault(number, place) != place:
                    return name, numbers[number], place
        return None

    def of_prompt(self, path: Path) -> dict[str, object]:
        """Numbers that tell of the prompt and were the same in all calls of a path, by name."""
        calls = self._along(path)
        if len(calls) < 2:
            return {}
        return {
            name: int(first)
            for name, first in calls[0].given.items()
            if first.dim() == 0
            and _OF_PROMPT.search(name)
            and all(name in one.given and torch.equal(first, one.given[name]) for one in calls)
        }

    def _along(self, path: Path) -> list[_Call]:
        """The calls that a path is made of; none where some are not known."""
        whole = (node for node in (*path.shared, *path.nodes) if node.end <= len(path.tokens))
        nodes = sorted(whole, key=lambda node: node.start)
        calls: list[_Call] = []
        for node in nodes:
            follows = node.start == (calls[-1].end if calls else 0)
            if node.step not in self._steps or not follows:
                return []
            calls.append(_Call(node.start, node.end, self._steps[node.step]))
        return calls if calls and calls[-1].end == len(path.tokens) else []


def rest(call: FirstCall, told: Mapping[str, object]) -> FirstCall:
    """A call without the arguments that later steps tell of."""
    given = {name: one for name, one in call.arguments.items() if name not in told}
    return replace(call, arguments=given) if told else call


def _numbers(value: object) -> Tensor | None:
    """Whole numbers, of whatever form, as a tensor of our own."""
    if isinstance(value, Tensor):
        fractions = value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
        return None if fractions or value.numel() > _MOST else value.detach().clone()
    if isinstance(value, list | tuple) and value and all(type(one) is int for one in value):
        return torch.tensor(value)
    return torch.tensor(value) if type(value) is int else None


def _whole(calls: Sequence[_Call], each: Sequence[Tensor]) -> Tensor:
    """What one call for all the tokens is given where its parts were given these."""
    first, last = each[0], each[-1]
    news = [one.end - one.start for one in calls]
    for axis in range(first.dim()):
        rest = {(*one.shape[:axis], *one.shape[axis + 1 :]) for one in each}
        if len(rest) == 1 and [one.shape[axis] for one in each] == news:
            return torch.cat(list(each), axis)
    if any(one.shape != first.shape for one in each):
        return last  # a table that grows
    stacked = torch.stack([one.to(last.device) for one in each])
    begins = [one.start for one in calls]
    ends = [one.end for one in calls]
    # where the new tokens begin: at the first one. How many there are: that is their sum
    stays, sums = _equals(stacked, begins), _equals(stacked, news)
    whole = torch.where(_equals(stacked, ends) | sums, torch.full_like(last, ends[-1]), last)
    return torch.where(stays, first, whole)


def _equals(stacked: Tensor, numbers: Sequence[int]) -> Tensor:
    """Where each of these steps was given its number."""
    wanted = torch.tensor(numbers, device=stacked.device)
    return (stacked == wanted.view(-1, *[1] * (stacked.dim() - 1))).all(0)


def _as(found: Tensor, like: object) -> object:
    """Numbers in the form of an argument."""
    if isinstance(like, Tensor):
        return found.to(like)
    numbers = found.tolist()
    return tuple(numbers) if isinstance(like, tuple) else numbers
