"""Where to look in a trace: step, layer, head, tensor, as typed."""

from __future__ import annotations

from msgspec import Struct

from kvtrace import units
from kvtrace.cli.show.names import TENSORS
from kvtrace.errors import KvtraceError, MissingError, UsageError
from kvtrace.trace import CACHED, Tensor, Trace

_SHORT = {"q": "queries", "k": "keys", "v": "values"}


class Place(Struct, frozen=True):
    """One place of a trace.

    Attributes:
        step, layer, head, sequence: Of the API.
        tensors: Names in `TENSORS`.
        lane: Whose rows.
    """

    step: int
    layer: int = 0
    head: int = 0
    sequence: int = 0
    tensors: tuple[str, ...] = TENSORS
    lane: str = CACHED


class Wish(Struct, frozen=True):
    """A place as far as it was said; the rest is chosen by the trace."""

    step: int | None = None
    layer: int | None = None
    head: int | None = None
    tensor: str | None = None
    sequence: int = 0
    lane: str = CACHED

    @property
    def particular(self) -> bool:
        """Whether any of it was said."""
        return self != Wish()

    def over(self, other: Wish) -> Wish:
        """What this one says, and where it says nothing, what another one does."""
        return Wish(
            other.step if self.step is None else self.step,
            other.layer if self.layer is None else self.layer,
            other.head if self.head is None else self.head,
            self.tensor or other.tensor,
            self.sequence or other.sequence,
            self.lane,
        )


def parse(text: str) -> Wish:
    """`step/layer/head/tensor/sequence`, as much of it as wanted: `7`, `7/3`, `7/3/0/keys`.

    Raises:
        UsageError: It is something else.
    """
    parts = text.split("/")
    numbers, named = parts[:3], [_SHORT.get(part, part) for part in parts[3:4]]
    row = parts[4:] or ["0"]
    digits = (part.isascii() and part.isdigit() for part in (*numbers, *row))
    fits = len(parts) <= 5 and all(digits)
    if not fits or any(name not in TENSORS for name in named):
        raise UsageError(
            f"{text!r} is no place in a trace: write step/layer/head/tensor, such as 7 or "
            f"7/3/0/keys, with a tensor of {', '.join(TENSORS)}; a fifth number is a row of the "
            "batch"
        )
    step, layer, head = [int(part) for part in numbers] + [None] * (3 - len(numbers))
    return Wish(step, layer, head, named[0] if named else None, int(row[0]))


def default_place(trace: Trace) -> Place | None:
    """The last step, the first layer and head; None when that can't be looked at."""
    try:
        return place(trace, Wish())
    except KvtraceError:
        return None


def place(trace: Trace, wish: Wish) -> Place:
    """The place meant: the last step, the first layer and head, unless said otherwise.

    Raises:
        UsageError: The trace is whole, and has no such place.
        MissingError: The trace is incomplete, and has no such place.
        TraceError: The step can't be read.
    """
    try:
        return _place(trace, wish)
    except MissingError as error:
        if not (trace.is_whole and wish.particular):
            raise
        raise UsageError(str(error)) from None


def _place(trace: Trace, wish: Wish) -> Place:
    """The same, where what is missing may be lost.

    Raises:
        MissingError: The trace has no such place.
        TraceError: The step can't be read.
    """
    numbers, sites = trace.numbers, trace.meta.sites
    if not (numbers and sites):
        what = "steps" if not numbers else "attention sites"
        raise MissingError(f"{trace.name}: the trace has no {what}")
    step = trace.step(numbers[-1] if wish.step is None else wish.step)
    layer = _attending(trace, step.number) if wish.layer is None else wish.layer
    site, head = trace.site(layer), wish.head or 0
    if head >= site.num_heads:
        raise MissingError(
            f"{trace.name}: layer {layer} has heads 0 to {site.num_heads - 1}, not {head}"
        )
    if wish.sequence >= max(step.num_sequences, 1):
        raise MissingError(
            f"{trace.name}: step {step.number} has "
            f"{units.counted(step.num_sequences, 'sequence')}, not a sequence {wish.sequence}"
        )
    if wish.lane != CACHED and trace.meta.lane(wish.lane) is None:
        lanes = ", ".join([CACHED, *(lane.name for lane in trace.meta.lanes)])
        raise MissingError(f"{trace.name}: lanes are {lanes}, not {wish.lane}")
    tensors = TENSORS if wish.tensor is None else (wish.tensor,)
    return Place(step.number, layer, head, wish.sequence, tensors, wish.lane)


def _attending(trace: Trace, number: int) -> int:
    """The first site that attended in a step; 0 if none did."""
    return min(trace.step(number).attending, default=0)


def step_range(text: str) -> range:
    """`A:B`, half-open, either end optional; `A` alone is one step.

    Raises:
        UsageError: It is something else.
    """
    first, colon, last = text.partition(":")
    if not all(part == "" or (part.isascii() and part.isdigit()) for part in (first, last)) or (
        not colon and not first
    ):
        raise UsageError(f"{text!r} is no range of steps: write A:B (B excluded), A:, :B or A")
    start = int(first or 0)
    if not colon:
        return range(start, start + 1)
    return range(start, int(last) if last else 1 << 62)


def tensor_of(name: str) -> Tensor:
    """The recorded tensor of that name; `weights` is none of them."""
    return Tensor[name.upper()]
