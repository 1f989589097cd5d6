"""What one attention saw in both lanes, laid side by side: all a check may look at.

`place` is a row's number in the reference: the n-th row of the forward without a cache, left
padding included. The reference holds every row by its place; the cached side holds what the
attention was given, in slot order, and the place each row is supposed to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from kvtrace.trace import Site
from kvtrace.trace.dtypes import Floats


class Side(Struct, frozen=True):
    """What one lane's attention consumed and made, for one sequence.

    Attributes:
        queries: [heads, new, key_dim].
        keys, values: [kv_heads, seq, dim].
        output: [heads, new, value_dim].
        visible: [new, seq]: what each query may look at, in any head.
    """

    queries: Floats
    keys: Floats
    values: Floats
    output: Floats
    visible: NDArray[np.bool_]


class Scales(Struct, frozen=True):
    """Absolute differences that are rounding, per tensor."""

    queries: float
    keys: float
    values: float
    output: float

    @classmethod
    def of(cls, side: Side, tolerance: float) -> Scales:
        """A share of the largest number of each tensor."""
        return cls(
            *(
                tolerance * float(np.abs(rows[np.isfinite(rows)]).max(initial=0.0)) + 1e-12
                for rows in (side.queries, side.keys, side.values, side.output)
            )
        )


class Scene(Struct, frozen=True):
    """One (step, layer, sequence), both lanes.

    Attributes:
        step, layer, sequence: Where.
        site: Of the layer.
        first_step: No earlier step wrote to this cache.
        cached: Keys and values as attended, [kv_heads, seq, dim].
        reference: Keys and values by place, [kv_heads, places, dim]; queries and output of the
            new rows; visible [new, places].
        places: Place of each new row, [new].
        supposed: Place each attended row is supposed to hold, [seq]; negative: none.
        slots: Slot of each attended row, [seq].
        changed: Attended rows whose slot held something else in the step before, [seq].
        atol: What is rounding.
        weights: Reference weights of one new row over the places, [heads, places].
        layers, sequences: How many there are.
        padding: Places below are padding, or rows in front of the text that stand for no token.
        front: How many of those there are.
        layer_rows: Reference keys and values of another layer: (keys, values), or None.
        sequence_rows: Reference keys and values of another sequence: (keys, values), or None.
        current: Sequences of this step, where those of the step before follow them.
        lost: Places whose rows stood in the changed slots before; None: not known.
        first_site: No attention comes before this one in its step.
        told: Positions that the step gave its new rows, [new], where they are others than the
            reference's; None: they are the same, or not known.
        held: Position of each attended row as the steps gave them, [seq]; None: not known.
        cropped: Rows were taken off the end of the cache before the step.
        paddings: Padding of all sequences of this step and of the one before.
        spoken: What people call a layer.
        biases: What is added to the scores of one new row, in both lanes: [heads or 1, seq] and
            [heads or 1, places]; None where nothing is.
        made: Output of the new rows, [heads, new, value_dim], that the reference's rules make of
            the rows as attended, and of the reference's own; None: not known.
        half: Changed rows of which the key ("k") or the value ("v") is what the slot held before,
            [seq]; none: not known.
    """

    step: int
    layer: int
    sequence: int
    site: Site
    first_step: bool
    cached: Side
    reference: Side
    places: NDArray[np.int64]
    supposed: NDArray[np.int64]
    slots: NDArray[np.int64]
    changed: NDArray[np.bool_]
    atol: Scales
    weights: Callable[[int], Floats]
    layers: int
    sequences: int
    padding: int = 0
    layer_rows: Callable[[int], tuple[Floats, Floats] | None] = lambda _: None
    sequence_rows: Callable[[int], tuple[Floats, Floats] | None] = lambda _: None
    lost: frozenset[int] | None = None
    front: int = 0
    current: int | None = None
    first_site: bool = False
    told: NDArray[np.int64] | None = None
    held: NDArray[np.int64] | None = None
    cropped: bool = False
    paddings: Callable[[], frozenset[int]] = frozenset[int]
    spoken: Callable[[int], str] = "layer {}".format
    biases: Callable[[int], tuple[Floats, Floats] | None] = lambda _: None
    made: Callable[[], tuple[Floats, Floats] | None] = lambda: None
    half: Mapping[str, NDArray[np.bool_]] = MappingProxyType({})

    def both(self, tensor: str) -> tuple[Floats, Floats, float]:
        """Keys ("k") or values ("v"): as attended, by place in the reference; what is rounding."""
        mine, right = self.cached, self.reference
        if tensor == "k":
            return mine.keys, right.keys, self.atol.keys
        return mine.values, right.values, self.atol.values

    @property
    def live(self) -> NDArray[np.int64]:
        """New rows that are no padding and see something in the reference, as row numbers."""
        sees = self.reference.visible.any(axis=1)
        return np.flatnonzero((self.places >= self.padding) & sees)

    @property
    def seen(self) -> NDArray[np.int64]:
        """Attended rows that a live query may look at, as indices into the attended rows."""
        return np.flatnonzero(self.cached.visible[self.live].any(axis=0))

    @property
    def wanted(self) -> NDArray[np.int64]:
        """Places that a live query may look at in the reference."""
        return np.flatnonzero(self.reference.visible[self.live].any(axis=0))
