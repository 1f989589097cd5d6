"""How long a text may be for one pass over all of it to be a reference.

Models that drop older rows within one pass too, as a rolling cache inside the model does, have of
a text that is longer than their room no reference: its first tokens were never seen by its last
ones, nor by each other. Models whose steps go on beyond the longest text that they take at once, by
dropping rows or by holding the last position, have none there either. Up to that length both do.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.given.extras import Extras
from kvtrace.record.lanes.passes.batch import Batch
from kvtrace.record.lanes.paths import Path
from kvtrace.trace import SET_WITHIN, Note


def in_room(batch: Batch, forward: Forward, extras: Extras) -> tuple[Batch, Note] | None:
    """The same paths as far as no row was dropped, and what is to be said; None: none was.

    Where the first step of a text is too long by itself, that step alone is left: of it a pass
    drops the same rows.

    Args:
        batch: What was run.
        forward: What came out.
        extras: Arguments of the run besides tokens and cache.
    """
    small = min(_small(batch, forward), key=lambda one: one.keys.shape[2], default=None)
    if small is None:
        return None
    room = small.keys.shape[2]
    cut = within(batch, room, extras) or within(batch, _first_steps(batch), extras)
    if cut is None or cut.rows == batch.rows:
        return None
    text = (
        f"the model drops older rows by itself: without any cache, {small.module or 'it'} has "
        f"{room} rows left of {batch.rows} tokens; no pass over more than "
        f"{max(room, cut.rows)} tells what its steps should equal: {SET_WITHIN}"
    )
    return cut, Note("note", text, step=_first_beyond(cut))


def at_once(
    batch: Batch, goes: Callable[[Batch], bool], extras: Extras, why: str
) -> tuple[int, Note] | None:
    """The longest text that goes in one pass, where a longer one does not, and what is to be said.

    None also where no text goes that is longer than its first step: what was given for that one
    is no sign that anything else can be computed again.

    Args:
        batch: What does not go.
        goes: Whether a pass does.
        extras: Arguments of the run besides tokens and cache.
        why: What came of the whole.
    """
    each = [[node.end for node in (*path.shared, *path.nodes)] for path in batch.paths]
    least = _first_steps(batch)
    lengths = sorted({end for ends in each for end in ends if least < end < batch.rows})
    if not lengths or not _goes(batch, lengths[0], goes, extras):
        return None
    low = bisect_right(lengths, False, lo=1, key=lambda n: not _goes(batch, n, goes, extras))
    cut = within(batch, lengths[low - 1], extras)
    if cut is None:
        return None
    text = f"no more than {cut.rows} tokens go in one pass without a cache: {why}; {SET_WITHIN}"
    return cut.rows, Note("note", text, step=_first_beyond(cut))


def within(batch: Batch, room: int, extras: Extras) -> Batch | None:
    """The same paths as far as they have so many rows; None: a first step has more."""
    paths = [_within(path, room) for path in batch.paths]
    if not all(path.tokens for path in paths):
        return None
    ends = {n.end - 1 for p in paths for n in p.nodes if p.compares(n.step)}
    keep = None if batch.keep is None else sorted(ends.intersection(batch.keep)) or [0]
    return Batch(paths, keep, extras.of(paths))


def _first_steps(batch: Batch) -> int:
    """Rows after which the first step of every path has ended."""
    ends = ((node.end for node in (*path.shared, *path.nodes)) for path in batch.paths)
    return max(min(path, default=0) for path in ends)


def _goes(batch: Batch, room: int, goes: Callable[[Batch], bool], extras: Extras) -> bool:
    """Whether a pass over so many rows does."""
    cut = within(batch, room, extras)
    return cut is not None and goes(cut)


def _first_beyond(batch: Batch) -> int | None:
    """The first step that is not compared."""
    return min((path.until for path in batch.paths if path.until is not None), default=None)


def is_whole(batch: Batch, forward: Forward) -> bool:
    """Whether each attention of a text to itself has a row for every token."""
    return not _small(batch, forward)


def only_first(batch: Batch) -> bool:
    """Whether no path has more than its first step."""
    return batch.rows == _first_steps(batch)


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
