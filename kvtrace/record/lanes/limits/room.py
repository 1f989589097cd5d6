"""Models that drop older rows within one pass too, as a rolling cache inside the model does.

What such a pass has of a text that is longer than its room is no reference: its first tokens were
never seen by its last ones, nor by each other. Up to its room it is one.
"""

from __future__ import annotations

from dataclasses import replace

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.given.extras import Extras
from kvtrace.record.lanes.passes.batch import Batch
from kvtrace.record.lanes.paths import Path
from kvtrace.trace import SET_WITHIN, Note


def in_room(batch: Batch, forward: Forward, extras: Extras) -> tuple[Batch, Note] | None:
    """The same paths as far as no row was dropped, and what is to be said; None: none was.

    None also where the first step of a text is too long by itself.

    Args:
        batch: What was run.
        forward: What came out.
        extras: Arguments of the run besides tokens and cache.
    """
    small = min(_small(batch, forward), key=lambda one: one.keys.shape[2], default=None)
    if small is None:
        return None
    room = small.keys.shape[2]
    paths = [_within(path, room) for path in batch.paths]
    if not all(path.tokens for path in paths):
        return None
    ends = {n.end - 1 for p in paths for n in p.nodes if p.compares(n.step)}
    first = min((p.until for p in paths if p.until is not None), default=None)
    text = (
        f"the model drops older rows by itself: without any cache, {small.module or 'it'} has "
        f"{room} rows left of {batch.rows} tokens; no pass over more than {room} tells what its "
        f"steps should equal: {SET_WITHIN}"
    )
    keep = None if batch.keep is None else sorted(ends.intersection(batch.keep)) or [0]
    return Batch(paths, keep, extras.of(paths)), Note("note", text, step=first)


def is_whole(batch: Batch, forward: Forward) -> bool:
    """Whether each attention of a text to itself has a row for every token."""
    return not _small(batch, forward)


def _small(batch: Batch, forward: Forward) -> list[AttentionCall]:
    """Attention of a text to itself that has fewer rows than there are tokens."""
    fewer = [
        call
        for call in forward.calls
        if call.kind == "self" and call.keys.shape[2] < call.queries.shape[2] == batch.rows
    ]
    return [call for call in fewer if _hides_some(call)]


def _hides_some(call: AttentionCall) -> bool:
    """Whether the first token does not see all rows: what it sees all of is another text's."""
    if call.causal or call.window is not None:
        return True
    return call.visible is not None and not bool(call.visible[..., :1, :].all())


def _within(path: Path, room: int) -> Path:
    """A path as far as its steps end within so many rows."""
    nodes = (*path.shared, *path.nodes)
    fit = max((node.end for node in nodes if node.end <= room), default=0)
    beyond = [node.step for node in nodes if node.end > room]
    until = min((one for one in (path.until, *beyond) if one is not None), default=None)
    return replace(path, tokens=path.tokens[:fit], until=until)
