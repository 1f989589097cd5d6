"""The names of the ways in which a model is driven, and where their traces go. Needs no torch."""

from __future__ import annotations

from pathlib import Path

WAYS = ("again", "chunks", "padded", "beams", "own")
"""Another prompt after the first; the prompt in chunks; a batch, padded where the model is told of
padding; beam search; the loops that people's own code generates with."""


def beside(output: str | Path, way: str) -> Path:
    """The trace of a way, beside that of the run: a.kvt, a-chunks.kvt."""
    path = Path(output)
    return path.with_name(f"{path.stem}-{way}{path.suffix or '.kvt'}")


def named(way: str, course: str) -> str:
    """What a run in that way is called; most say it by what they did."""
    begins = {"again": "another prompt: ", "own": "its own loop: "}.get(way, "")
    return f"{begins}{course}"
