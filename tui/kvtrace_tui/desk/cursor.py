"""Where the user is looking: one immutable value that every pane gets.

A key makes a new cursor (see `moves`) and panes redraw what depends on the fields that changed.
Knows nothing of Textual or of files.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class View(StrEnum):
    """What a map shows of a tensor."""

    VALUE = "value"
    RECOMPUTED = "recomputed"
    ABSOLUTE = "absolute"
    RELATIVE = "relative"

    @property
    def needs_lane(self) -> bool:
        """Whether it needs a lane beside the cached one."""
        return self is not View.VALUE

    @property
    def differs(self) -> bool:
        """Whether it shows a difference between lanes."""
        return self in (View.ABSOLUTE, View.RELATIVE)


class ColourScale(StrEnum):
    """How values are spread over colours."""

    LINEAR = "lin"
    LOG = "log"
    PERCENTILE = "percentile"


class Axis(StrEnum):
    """A field of the cursor that arrows can move along."""

    STEP = "step"
    LAYER = "layer"
    HEAD = "head"
    SEQUENCE = "sequence"
    QUERY = "query"
    ROW = "row"
    DIM = "dim"


class Cursor(Struct, frozen=True):
    """Where the user is looking, and how.

    Attributes:
        step: Number of a recorded step.
        layer: Index into `Meta.sites`.
        head: Query head of that site.
        sequence: Row of the batch.
        query: Row among the step's new rows, counted from 0.
        row: Crosshair: index among the rows the site was given, in slot order.
        dim: Crosshair: feature of the head.
        inside: Walking layer by layer: the layers after `layer` have not run yet.
        base: Lane whose values are shown, and held against `lane`.
        lane: Lane that the other views compare with.
        view: Value, recomputed, or a difference.
        kept: K and V as the cache keeps them after the step, instead of as attended to.
        numbers: Numbers instead of a map.
        palette: Place in the list of palettes.
        scale: How values are spread over colours.
        zoom: Times the map was enlarged by 2; 0 fits all of it, negative never.
    """

    step: int = 0
    layer: int = 0
    head: int = 0
    sequence: int = 0
    query: int = 0
    row: int = 0
    dim: int = 0
    inside: bool = False
    base: str = "cached"
    lane: str = "recomputed"
    view: View = View.VALUE
    kept: bool = False
    numbers: bool = False
    palette: int = 0
    scale: ColourScale = ColourScale.LINEAR
    zoom: int = 0

    @property
    def shows(self) -> str:
        """What the maps show, in words: "value", a lane, or a difference."""
        if self.view is View.VALUE:
            return "value" if self.base == "cached" else self.base
        if self.view is View.RECOMPUTED:
            return self.lane
        gap = f"|{self.base} − {self.lane}|"
        return gap if self.view is View.ABSOLUTE else f"{gap} ÷ max|{self.lane}|"

    @property
    def shows_briefly(self) -> str:
        """The same where there is no room for the names of the lanes: "|Δ|", "Δ rel."."""
        return {View.ABSOLUTE: "|Δ|", View.RELATIVE: "Δ rel."}.get(self.view, self.shows)
