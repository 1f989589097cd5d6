"""What a text attends to besides itself, such as an encoder's output, and whether it was exchanged.

Rows of a cross-attention are computed once and kept. A later step may be given another output: all
lanes then read the rows of the first one, and only what the steps were called with shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvtrace.record.capture.forward import Forward
from kvtrace.record.capture.running import our_work
from kvtrace.trace import Note, Site, Step, Trace

_MOST = 64
"""Different ones that are remembered by one name; a run with more is not looked at further."""

_ALIKE = 1e-2
"""Of the largest number: encoding the same again may round otherwise."""

_DEEP = 3


@dataclass(slots=True)
class Sources:
    """What steps were given to attend to, told apart by content."""

    _known: dict[str, list[Tensor]] = field(default_factory=dict)
    _given: dict[int, dict[str, int]] = field(default_factory=dict)

    def add(self, step: int, forward: Forward) -> None:
        """A forward became a step: remember which outputs of an encoder it was given."""
        crossing = next((call for call in forward.calls if call.kind == "cross"), None)
        if crossing is None:
            return
        here: dict[str, int] = {}
        for name, one in _tensors(forward.arguments):
            new = one.dim() == 3 and one.shape[:2] == (forward.sequences, crossing.keys.shape[2])
            if one.is_floating_point() and (new or name in self._known):
                here[name] = self._number(name, one)
        self._given[step] = here

    def notes(self, trace: Trace) -> Iterator[Note]:
        """A finding for the first step whose output of an encoder is not the one it attends to.

        Args:
            trace: What was recorded, all steps written.
        """
        sites = [site for site in trace.meta.sites if site.kind == "cross"]
        for step in trace if len(set(map(str, self._given.values()))) > 1 else ():
            site = next((one for one in sites if step.site_step(one.index) is not None), None)
            found = None if site is None else self._exchanged(trace, step, site)
            if found is not None and site is not None:
                yield Note("finding", f"STALE-CACHE: {found}", step=step.number, site=site.index)
                break
        self._given.clear()

    def _exchanged(self, trace: Trace, step: Step, site: Site) -> str | None:
        """What was exchanged between a step and the one that computed its rows, in words."""
        first = _computed(trace, step, site)
        if first is None or first == step.number:
            return None
        before, now = self._given.get(first, {}), self._given.get(step.number, {})
        for name in before.keys() & now.keys():
            if min(before[name], now[name]) < 0 or before[name] == now[name]:
                continue
            mine, theirs = self._known[name][now[name]], self._known[name][before[name]]
            if len(mine) != len(theirs):  # other sequences: nothing is known of which
                continue
            return (
                f"{name} of this step is not what step {first} was given ({_apart(mine, theirs)}), "
                f"but the keys and values attended to are still those of step {first}"
            )
        return None

    def _number(self, name: str, one: Tensor) -> int:
        """Which of the contents known by a name this is; -1: there are too many."""
        known = self._known.setdefault(name, [])
        for number, other in enumerate(known):
            if other is one or _alike(other, one):
                return number
        if len(known) >= _MOST:
            return -1
        known.append(one)
        return len(known) - 1


def _tensors(value: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Tensors among arguments, by name."""
    if isinstance(value, Tensor):
        yield name, value
    elif depth < _DEEP and isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, f"{name}.{key}" if name else str(key), depth + 1)
    elif depth < _DEEP and isinstance(value, tuple | list):
        for key, part in enumerate(value):
            yield from _tensors(part, f"{name}[{key}]", depth + 1)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same but for rounding."""
    if one.shape != other.shape or one.device != other.device:
        return False
    with our_work(), torch.no_grad():
        far = (one - other).abs().amax()
        return bool(far <= _ALIKE * one.abs().amax())


def _apart(mine: Tensor, theirs: Tensor) -> str:
    """How two outputs differ, in words."""
    if mine.shape != theirs.shape:
        return f"{mine.shape[1]} rows and not {theirs.shape[1]}"
    with our_work(), torch.no_grad():
        far = float((mine - theirs).abs().amax())
        return f"they differ by up to {far:.3g} of {float(theirs.abs().amax()):.3g}"


def _computed(trace: Trace, step: Step, site: Site) -> int | None:
    """The step that computed the rows a cross-attention reads; None where sequences moved."""
    known = set(trace.numbers)
    while True:
        group = step.cache_step(site.reads)
        if group is not None and group.rows:
            return step.number
        if step.parent is None or step.parent not in known or step.order:
            return None
        step = trace.step(step.parent)
