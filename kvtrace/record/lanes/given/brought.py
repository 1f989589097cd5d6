"""What later turns of a text bring along besides tokens: another image, another sound.

A pass over the whole text is given all of them, one behind the other. Whatever is given with every
step is none of these.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.paths import Path

_Step = tuple[int, Mapping[str, Tensor]]
"""Sequences of a step, and what it brought by name."""


@dataclass(slots=True)
class Brought:
    """By step, where it went on with a text and was given what the step before it was not."""

    _steps: dict[int, _Step] = field(default_factory=dict)
    _before: Mapping[str, Tensor] = field(default_factory=dict)

    def add(self, step: int, forward: Forward, none: Container[str], *, begins: bool) -> None:
        """A forward became a step.

        Args:
            step: Its number.
            forward: It.
            none: Names of arguments that belong to its tokens.
            begins: Whether a text begins with it.
        """
        given = {
            name: one
            for name, one in forward.arguments.items()
            if isinstance(one, Tensor) and one.dim() > 1 and name not in none
            if not _are_rows(one, forward)
        }
        new = {
            name: one
            for name, one in given.items()
            if name not in self._before or (forward.new > 1 and _other(self._before[name], one))
        }
        self._before = given
        # numbers alone that come with a step count, or say where it is
        if not begins and any(one.is_floating_point() for one in new.values()):
            self._steps[step] = forward.sequences, new

    def forget(self, before: int) -> None:
        """Drop what earlier steps brought."""
        self._steps = {step: one for step, one in self._steps.items() if step >= before}

    def behind(self, extra: Mapping[str, object], paths: Sequence[Path]) -> dict[str, Tensor]:
        """Arguments of paths, each with what its later steps brought behind what its first had.

        Args:
            extra: What their first steps were given.
            paths: In the order of a batch.
        """
        found: dict[str, Tensor] = {}
        along = [self._along(path) for path in paths]
        for name in {name for each in along for _, (_, new) in each for name in new}:
            parts: list[Tensor] = []
            first = extra.get(name)
            for place, each in enumerate(along):
                own = [(place, (len(paths), {name: first}))] if isinstance(first, Tensor) else []
                rows = [_row(new.get(name), row, count) for row, (count, new) in (*own, *each)]
                parts += [one for one in rows if one is not None]
            if len({one.shape[1:] for one in parts}) == 1:
                found[name] = torch.cat([one.to(parts[0].device) for one in parts])
        return found

    def _along(self, path: Path) -> list[tuple[int, _Step]]:
        """(Row of its batch, what it brought) of every such step of a path."""
        nodes = {
            node.step: node.sequence
            for node in (*path.shared, *path.nodes)
            if node.step in self._steps and node.start < len(path.tokens)
        }
        return [(row, self._steps[step]) for step, row in sorted(nodes.items())]


def _are_rows(given: Tensor, forward: Forward) -> bool:
    """Whether there is one row for each of its tokens, or position."""
    each = tuple(given.shape[:2]) == (forward.sequences, forward.new)
    return each or (given.dim() == 2 and given.shape[0] == forward.new)


def _other(before: Tensor, now: Tensor) -> bool:
    """Whether something else is given than before, and not the same once more."""
    if before is now:
        return False
    like = (before.shape, before.device) == (now.shape, now.device)
    return not (like and torch.equal(before, now))


def _row(given: Tensor | None, row: int, count: int) -> Tensor | None:
    """What is one sequence's of an argument of several; all of it, where it can't be told."""
    if given is None or given.shape[0] != count:
        return given
    return given[row : row + 1]
