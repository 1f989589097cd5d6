"""A trace held in memory: the simplest thing that satisfies `Source`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kvtrace.errors import MissingError
from kvtrace.trace import (
    OVERVIEW,
    WRITES,
    Damage,
    Ending,
    LaneStep,
    Meta,
    Note,
    Step,
    Tensor,
)


@dataclass
class MemorySource:
    meta: Meta
    name: str = "memory.kvt"
    steps: dict[int, Step] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    # (step, site, tensor) -> [sequences, heads, new, dim]
    site_tensors: dict[tuple[int, int, Tensor], np.ndarray] = field(default_factory=dict)
    # (cache layer, tensor) -> [kv_heads, cells, dim]
    cell_tensors: dict[tuple[int, Tensor], np.ndarray] = field(default_factory=dict)
    masks: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    biases: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    lane_steps: dict[tuple[str, int], LaneStep] = field(default_factory=dict)
    # (lane, number) -> pass; (lane, number, tensor, site or cache layer) -> rows
    passes: dict[tuple[str, int], Step] = field(default_factory=dict)
    pass_tensors: dict[tuple[str, int, Tensor, int], np.ndarray] = field(default_factory=dict)
    pass_masks: dict[tuple[str, int, int], np.ndarray] = field(default_factory=dict)
    pass_biases: dict[tuple[str, int, int], np.ndarray] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    ending: Ending | None = field(default_factory=lambda: Ending("length", "all tokens made"))
    damage: list[Damage] = field(default_factory=list)

    fate = ""

    def refresh(self):
        return False

    def again(self):
        return self

    def step_numbers(self):
        return sorted(self.steps)

    def step(self, number):
        if number not in self.steps:
            raise MissingError(f"{self.name}: step {number} is not in this trace.")
        return self.steps[number]

    def overview(self):
        table = np.zeros(len(self.steps), OVERVIEW)
        for row, number in zip(table, self.step_numbers(), strict=True):
            step = self.steps[number]
            row["number"] = number
            row["parent"] = -1 if step.parent is None else step.parent
            row["phase"] = step.phase == "decode"
            row["sequences"], row["new"] = step.num_sequences, step.new
            row["token"] = step.tokens[0][-1] if step.new else -1
            chosen = step.chosen[0] if step.chosen else None
            row["chosen"] = -1 if chosen is None else chosen
            row["elapsed_ns"] = step.elapsed_ns
            row["cached_flops"] = step.cost.cached.total
            row["recomputed_flops"] = step.cost.recomputed.total
            row["cache_bytes"] = step.cost.cache_bytes
        return table

    def writes(self, layer):
        found = [
            (number, group.first_cell, group.rows, len(group.attended))
            for number in self.step_numbers()
            if (group := self.steps[number].cache_step(layer)) and group.rows
        ]
        return np.array(found, WRITES)

    def token_text(self, token):
        return self.texts.get(token)

    def site_rows(self, step, site, tensor, head):
        rows = self.site_tensors.get((step, site, tensor))
        return rows if rows is None or head is None else rows[:, head : head + 1]

    def cells(self, layer, tensor, first, count, head):
        rows = self.cell_tensors.get((layer, tensor))
        if rows is None:
            raise MissingError(f"{self.name}: {tensor.name.lower()} are not recorded.")
        assert first + count <= rows.shape[1]
        part = rows[:, first : first + count]
        return part if head is None else part[head : head + 1]

    def full_mask(self, step, site):
        return self.masks.get((step, site))

    def bias(self, step, site):
        return self.biases.get((step, site))

    def lane_step(self, lane, step):
        return self.lane_steps.get((lane, step))

    def pass_step(self, lane, number):
        return self.passes.get((lane, number))

    def pass_rows(self, lane, number, tensor, index, head):
        rows = self.pass_tensors.get((lane, number, tensor, index))
        return rows if rows is None or head is None else rows[:, head : head + 1]

    def pass_mask(self, lane, number, site):
        return self.pass_masks.get((lane, number, site))

    def pass_bias(self, lane, number, site):
        return self.pass_biases.get((lane, number, site))
