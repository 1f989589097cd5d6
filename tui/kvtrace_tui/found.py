"""One thing found in a trace, as the screen shows it: safe to print, with the place to look at.

Pure, and light: loaded with the first picture. What finds things is in `findings`.
"""

from __future__ import annotations

import sys

from msgspec import Struct


class Found(Struct, frozen=True):
    """A finding of a check, or a note somebody wrote. All texts are safe to show.

    Attributes:
        step: Where it begins; None: it is about the whole trace.
        name: Kind of divergence ("POSITION-ROPE"), or the kind of the note.
        said: What was seen, a clause or somebody's own words.
        layer: Index into `Meta.sites`, where it is about one.
        head: Head of the tensor (a kv head for "k" and "v"), where it is about one.
        tensor: "q", "k", "v", "mask", "weights", "output", "logits"; empty: none.
        row: Attended row for "k" and "v"; for others a row of the step's new ones.
        slot: Place in the stored array, where it is about one.
        sequence: Row of the batch to look at.
        means: What the kind means; empty for notes.
        cause: What usually causes it; empty for notes.
        code: Where in the model's code, as far as known.
        grave: A bug, rather than a true difference or a remark.
        stops: Whether `c` stops here.
    """

    step: int | None
    name: str
    said: str
    layer: int | None = None
    head: int | None = None
    tensor: str = ""
    row: int | None = None
    slot: int | None = None
    sequence: int = 0
    means: str = ""
    cause: str = ""
    code: str = ""
    grave: bool = False
    stops: bool = True

    @property
    def order(self) -> tuple[int, int, int, str, str]:
        """By step, then layer; what is about the whole trace first, mere remarks on it last."""
        step = (-1 if self.grave else sys.maxsize) if self.step is None else self.step
        layer = -1 if self.layer is None else self.layer
        return step, layer, self.sequence, self.name, self.said

    @property
    def place(self) -> str:
        """Where, in words."""
        if self.step is None:
            return "the whole trace"
        parts = [f"step {self.step}"]
        if self.layer is not None:
            parts.append(f"layer {self.layer}")
        if self.head is not None:
            parts.append(f"{'kv head' if self.tensor in ('k', 'v') else 'head'} {self.head}")
        if self.tensor:
            parts.append(self.tensor)
        if self.slot is not None:
            parts.append(f"slot {self.slot}")
        return ", ".join(parts)

    @property
    def sentence(self) -> str:
        """One line: what, where, what was seen."""
        if not self.means:
            return f"{self.name}: {self.said}"
        return f"{self.name} at {self.place}: {self.means}; {self.said}"

    @property
    def shorter(self) -> tuple[str, ...]:
        """The same in ever fewer words, for a reader who stands at its step and layer."""
        whole = self.sentence
        if not self.means:
            return (whole,)
        slot = "" if self.slot is None else f", slot {self.slot}"
        inside = f" in {self.tensor}{slot}" if self.tensor else ""
        told = f"{self.means}; {self.said}"
        return whole, f"{self.name}{inside}: {told}", f"{self.name}: {self.said}"

    @property
    def apart(self) -> bool:
        """A true difference, and no bug."""
        return bool(self.means) and not self.grave

    @property
    def sign(self) -> str:
        """✗ a bug, ! a true difference, · a remark."""
        return "✗" if self.grave else "!" if self.means else "·"

    def here(self, step: int, layer: int) -> bool:
        """Whether it speaks of this step and layer."""
        return self.step == step and self.layer in (None, layer)


class Answer(Struct, frozen=True):
    """What a check of the whole trace says; all texts are safe to show.

    Attributes:
        verdict: "equal within rounding", "diverged", "could not check"; "checking" while it goes
            on, empty where nothing was asked.
        lines: The reasons, and what is not covered, a sentence each.
    """

    verdict: str = ""
    lines: tuple[str, ...] = ()

    @property
    def awaited(self) -> bool:
        """It is still being looked for."""
        return self.verdict == "checking"

    @property
    def equal(self) -> bool:
        """Nothing but rounding."""
        return self.verdict.startswith("equal")

    @property
    def diverged(self) -> bool:
        """A bug."""
        return self.verdict.startswith("diverged")
