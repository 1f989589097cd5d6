"""Rows that went in instead of token ids (soft prompts, images, a text as embeddings), kept.

A pass over a whole path is given them again, and the table's rows for the ids after them. That is
right where a model goes on from rows as from ids; where it looks ids up twice, it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.given.extend import CannotExtendError
from kvtrace.record.lanes.paths import Path

NAME = "inputs_embeds"

LED = "ids behind rows"
"""Ids that texts begin with where an image made rows besides them: no argument has such a name."""


@dataclass(slots=True)
class Embedded:
    """By step, what went in: [sequences, new, width].

    Attributes:
        led: Ids that a text began with, where its rows are more than these: its call is made
            again as it was, so that the rows need not be kept.
    """

    led: dict[int, Tensor] = field(default_factory=dict)
    _given: dict[int, Tensor] = field(default_factory=dict)
    _rows: Tensor | None = None

    def __contains__(self, step: object) -> bool:
        return step in self._given or step in self.led

    def begin(self, arguments: Mapping[str, object]) -> None:
        """A forward begins: some models add their positions to the very rows they are given."""
        rows = arguments.get(NAME) if arguments.get("input_ids") is None else None
        self._rows = rows.detach().clone() if isinstance(rows, Tensor) else None

    def add(self, step: int, forward: Forward, name: str = NAME) -> None:
        """A forward became a step: keep its rows, if it was given no ids.

        Args:
            step: Its number.
            forward: It.
            name: Of the argument that holds them.
        """
        rows = forward.argument(name)
        if forward.tokens is not None or rows is None or rows.dim() != 3:
            return
        before, self._rows = self._rows, None
        own = name == NAME and before is not None
        self.keep(step, forward, before if own else rows.detach().clone())

    def keep(self, step: int, forward: Forward, rows: Tensor | None) -> None:
        """Keep rows of a step, if there is one for each of its tokens.

        Args:
            step: Its number.
            forward: It.
            rows: Nobody else's, [sequences, new, width] or turned; None: there are none.
        """
        shape = (forward.sequences, forward.new)
        if rows is not None and tuple(rows.shape[:2]) == shape[::-1] != shape:
            rows = rows.transpose(0, 1)
        if rows is not None and tuple(rows.shape[:2]) == shape:
            self._given[step] = rows

    def of(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """What was given along these paths.

        Rows, [paths, rows, width], 0 where ids were; or ids that texts began with behind others.
        """
        found = along(paths, self._given)
        if found is not None:
            return {NAME: found}
        ids = [self.led[path.root][path.row] for path in paths if path.root in self.led]
        return {LED: torch.stack(ids)} if ids and len(ids) == len(paths) else {}

    def of_all(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """The same, if each step of these paths was given some; nothing if any was not."""
        nodes = {node.step for path in paths for node in (*path.shared, *path.nodes)}
        steps = nodes | {path.root for path in paths}
        return self.of(paths) if steps <= self._given.keys() else {}


def along(paths: Sequence[Path], given: Mapping[int, Tensor]) -> Tensor | None:
    """What went in along paths, [paths, rows, …]; 0 where nothing is known, None: nowhere it is.

    Args:
        paths: In the order of a batch.
        given: By step, [sequences, new, …].
    """
    width = max(len(path.tokens) for path in paths) if given else 0
    found: Tensor | None = None
    for place, path in enumerate(paths):
        begins = (path.root, path.row, 0)
        nodes = ((node.step, node.sequence, node.start) for node in (*path.shared, *path.nodes))
        for step, sequence, start in (begins, *nodes):
            rows = given.get(step)
            if rows is None or sequence >= len(rows):
                continue
            if found is None:
                found = rows.new_zeros((len(paths), width, *rows.shape[2:]))
            part = rows[sequence, : max(0, width - start)]  # the path may be cut short
            found[place, start : start + len(part)] = part
    return found


def joined(model: nn.Module, ids: Tensor, given: Tensor) -> Tensor:
    """The rows of whole paths: those that were given, and the table's where there are ids.

    Whoever is given them may write to them.

    Args:
        model: Has the table.
        ids: Negative where rows were given, [paths, rows].
        given: [paths, rows, width].

    Raises:
        CannotExtendError: The model does not say which table that is.
    """
    if bool((ids < 0).all()):
        return given.clone()  # nothing is looked up: it need not have a table
    try:
        table: Any = getattr(model, "get_input_embeddings", lambda: None)()
    except (AttributeError, NotImplementedError):
        table = None
    if table is None:
        raise CannotExtendError(
            "rows were given for some tokens and ids for others, and the model does not say in "
            "which table ids are looked up"
        )
    with torch.no_grad():
        looked_up: Tensor = table(ids.clamp(min=0))
    return torch.where((ids < 0)[..., None], given.to(looked_up), looked_up)
