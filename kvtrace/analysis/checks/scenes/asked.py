"""What the checks may ask a scene for beside it, read when they do: other rows, weights, biases."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.analysis.checks.scenes.scene import Side
from kvtrace.errors import MissingError
from kvtrace.trace import Reference, Step, Tensor, Trace
from kvtrace.trace.dtypes import Floats
from kvtrace.trace.weights import derive, mix


class Asked(Struct, frozen=True):
    """Answers the questions of one scene, as `Scene` describes them.

    Attributes:
        trace: Whose step.
        reference: The lane's pass over the sequence.
        step: It.
        lane: The reference's.
        place: Site and sequence of the scene.
        sites: Where the lane has the queries, and where it has the keys and values.
    """

    trace: Trace
    reference: Reference
    step: Step
    lane: str
    place: tuple[int, int]
    sites: tuple[int, int]

    def weights(self, row: int) -> Floats:
        """Reference weights of one new row, [heads, places]."""
        (same, own), reference = self.sites, self.reference
        queries, keys = reference.rows(same, Tensor.QUERIES), reference.rows(own, Tensor.KEYS)
        visible, bias = reference.visible(same), reference.bias(same)
        if queries is None or keys is None or visible is None:
            name = self.trace.name
            raise MissingError(f"{name}: the rows of the recomputed lane are not complete.")
        if bias is not None and bias.shape[1] > 1:
            bias = bias[:, row : row + 1]
        place = reference.first + row
        query, seen = queries[:, place : place + 1], visible[:, row : row + 1]
        return derive(self.trace.site(same), query, keys, seen, bias).weights[:, 0]

    def made_of(self, cached: Side, supposed: NDArray[np.int64]) -> tuple[Floats, Floats] | None:
        """The output that the reference's rules make of cached rows, and of its own rows.

        Args:
            cached: As attended.
            supposed: Place each attended row is supposed to hold.
        """
        (same, own), reference = self.sites, self.reference
        queries, visible = reference.rows(same, Tensor.QUERIES), reference.visible(same)
        right = keys_and_values(reference, own)
        if queries is None or visible is None or right is None:
            return None
        new, rows = queries[:, reference.first :], np.flatnonzero(supposed >= 0)
        held = tuple(one.copy() for one in right)
        for whole, mine in zip(held, (cached.keys, cached.values), strict=True):
            if whole.shape[::2] != mine.shape[::2] or (supposed >= whole.shape[1]).any():
                return None
            whole[:, supposed[rows]] = mine[:, rows]
        if cached.queries.shape != new.shape:
            return None
        site, bias = self.trace.site(same), reference.bias(same)
        given = ((cached.queries, *held), (new, *right))
        made = (mix(derive(site, q, k, visible, bias).weights, v) for q, k, v in given)
        return next(made), next(made)

    def layer_rows(self, other: int) -> tuple[Floats, Floats] | None:
        """Keys and values of another layer of the same kind."""
        trace = self.trace
        alike = trace.site(other).kind == trace.site(self.place[0]).kind
        return keys_and_values(self.reference, other) if alike else None

    def sequence_rows(self, other: int) -> tuple[Floats, Floats] | None:
        """Keys and values of another sequence; those of the step before follow those of this."""
        step = self.step
        before = other - step.num_sequences  # one of the step before, which may have ended there
        at = step.number if before < 0 or step.parent is None else step.parent
        there = self.trace.reference(at, other if before < 0 else before, self.lane)
        own = self.sites[1]
        return None if there is None else keys_and_values(there.leading(own), own)

    def biases(self, row: int) -> tuple[Floats, Floats] | None:
        """What is added to the scores of one new row, in both lanes; zeros where nothing is."""
        layer, sequence = self.place
        mine = self.trace.bias(self.step.number, layer, sequence)
        right = self.reference.bias(self.sites[0])
        if mine is None and right is None:
            return None
        if mine is None:
            rows = len(self.trace.cache(self.step.number, layer, sequence).cells)
            mine = np.zeros((1, 1, rows), np.float32)
        if right is None:
            right = np.zeros((1, 1, self.reference.places), np.float32)
        one, other = (bias[:, min(row, bias.shape[1] - 1)] for bias in (mine, right))
        return one, other

    def paddings(self) -> frozenset[int]:
        """Padding of all sequences of the step and of the one before."""
        step, trace = self.step, self.trace
        steps = [step] if step.parent is None else [step, trace.step(step.parent)]
        each = (
            trace.reference(one.number, sequence, self.lane)
            for one in steps
            for sequence in range(one.num_sequences)
        )
        return frozenset(int((one.positions < 0).sum()) for one in each if one is not None)


def keys_and_values(reference: Reference, layer: int) -> tuple[Floats, Floats] | None:
    """Those of a site in a lane, by place; None where they were not kept."""
    keys, values = reference.rows(layer, Tensor.KEYS), reference.rows(layer, Tensor.VALUES)
    return None if keys is None or values is None else (keys, values)
