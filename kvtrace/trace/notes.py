"""What is added to a trace around its steps: notes, findings, bookmarks, and how it ended."""

from __future__ import annotations

from msgspec import Struct

OTHER_AXIS = "its softmax ran over another axis than the keys now and then"
"""What META says of a module ("module: …") that was attention in other forwards."""

ROWS_UNKNOWN = "which row is which token's is not known"
"""How a note ends that a run whose rows are not one a token ends with."""

NOT_REPEATABLE = "not repeatable:"
"""How a note begins about a model that gives other numbers in every call."""

ROUNDS_INSIDE = "rounds inside:"
"""How a note begins about a model whose rows move far by rounding; how far comes next."""

WEIGHTS_CHANGED = "not compared, for the weights changed afterwards"
"""How a note ends about steps that another model took, so to speak."""

HOOKS_CHANGED = "hooks on the model came or went after it"
"""A note on the last step that the model took with other hooks than later on."""

SET_WITHIN = "from there on it is not compared"
"""How a note ends about what parts a model from its other lane in the middle of a text."""

HANDED_BACK = "which a step handed back and its text began without"
"""What a note says of state that a text goes on with, in place of rows of its cache, maybe."""

ROWS_LEFT_OUT = "lane: rows of a long pass were compared, and not kept; --keep-rows keeps them"
"""What a note says after the name of a lane whose rows took too much to be kept unasked."""

NOT_RECOVERED = "not recovered:"
"""How a note begins about what this file is a copy without; one that names a step is about a step
itself, or its rows, one that names none about anything else."""

INEXACT = "its cache hands back other numbers than it was given: it does not keep rows exactly"
"""What a cache layer's remark says of a cache that compresses what it is given."""


class Note(Struct, frozen=True, omit_defaults=True):
    """Something said about a trace, possibly long after it was recorded.

    Attributes:
        kind: "note", "finding", "bookmark" or "chosen" (the token chosen after `step`, learned
            too late to be in it: `text` holds the id).
        text: What it says.
        step: The step it is about, None for the whole trace.
        site, head: Narrower, where known.
        sequence: Row of the batch.
    """

    kind: str
    text: str
    step: int | None = None
    site: int | None = None
    head: int | None = None
    sequence: int = 0


def rounded_by(note: Note) -> float | None:
    """How far rounding moves rows, relative to the largest number, as a note says; None: not it."""
    if not note.text.startswith(ROUNDS_INSIDE):
        return None
    word = note.text.removeprefix(ROUNDS_INSIDE).split(maxsplit=1)[0]
    try:
        return float(word)
    except ValueError:  # in somebody's own words
        return None


STOPPED = "recording stopped:"
"""How a note begins that says why a recording ended before the program that was recorded."""

RECOVERED = "recovered"
"""Why a trace ended that was copied from one whose recording never said so."""


class Ending(Struct, frozen=True, omit_defaults=True):
    """How the recording ended. A trace without one is incomplete.

    Attributes:
        reason: "length", "eos", "context full", "stopped", "error", "done", or `RECOVERED`.
        text: A sentence; for an error, what happened.
    """

    reason: str
    text: str = ""


class Damage(Struct, frozen=True, omit_defaults=True):
    """A part of the file that can't be read.

    Attributes:
        text: What and where, with step, layer and tensor where known.
        offset: Byte in the file.
    """

    text: str
    offset: int
