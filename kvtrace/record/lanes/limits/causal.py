"""Whether later tokens change what a model computes for earlier ones, without any cache.

Asked once lanes part: a model that looks ahead can't be equalled by any cache. Positions that are
encoded otherwise in a longer text move queries and keys alone, a scale that depends on the length
moves no row that goes in: those have names of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from copy import copy

from msgspec import Struct
from msgspec.structs import replace

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.compared.tolerance import tolerance
from kvtrace.record.lanes.given.extras import Extras
from kvtrace.record.lanes.given.tables import given_table
from kvtrace.record.lanes.limits.apart import pairs
from kvtrace.record.lanes.limits.few_values import few_values
from kvtrace.record.lanes.limits.moved import Moved, moved, rows_apart
from kvtrace.record.lanes.limits.otherwise import rounds_inside, varies
from kvtrace.record.lanes.limits.room import is_whole
from kvtrace.record.lanes.passes.batch import Batch, CannotRecomputeError
from kvtrace.record.lanes.passes.recompute import Recomputer
from kvtrace.record.lanes.paths import Node, Path
from kvtrace.trace import Lane, Note, Trace

_TIMES = 4.0
"""Times what is rounding in the dtype of the lane: in other shapes, numbers round otherwise."""

_WIDE = ("float32", "float64")

FEW = 2
"""Tokens of a short text; one alone may be taken for a step that has a cache."""


def looks_ahead(
    again: Recomputer, trace: Trace, lane: Lane, whole: tuple[Batch, Forward], extras: Extras
) -> Note | None:
    """A finding, where rows of the first step come out otherwise without the tokens after it.

    A note, where they come out otherwise in every call.

    Args:
        again: Computes the tokens again.
        trace: What was recorded.
        lane: The one that parts from the cached one. In narrow types, where the choice of an
            expert may flip by rounding, it is only asked whether they repeat; what looks ahead
            is asked of a wider lane, or in float32 where there is none.
        whole: What was computed over all tokens.
        extras: Arguments of the run besides tokens and cache.
    """
    batch, forward = whole
    nodes = [node for path in batch.paths for node in path.nodes]
    end = min(node.end for node in nodes)
    later = [node.step for node in nodes if node.end > end]
    whole_known = all(len(path.tokens) >= end for path in batch.paths)
    if not later or not whole_known:
        return None
    cut = _cut(batch.paths, end, extras)
    ask = _Question(again, trace, lane, batch, forward, extras)
    with suppress(CannotRecomputeError):
        # a pass that drops rows by itself drops others of a longer text, wherever it looks
        if not is_whole(batch, forward) and not ask.sees_last():
            return None
        said = ask.answer(end, cut, min(later))
        if said is not None or ask.wide or any(one.dtype in _WIDE for one in trace.meta.lanes):
            return said
        # no other lane will tell: the same in float32
        exact = replace(ask, lane=replace(lane, dtype="float32"))
        return replace(exact, whole=again.run(batch, dtype=exact.dtype)).answer(
            end, cut, min(later)
        )
    return None


class _Question(Struct, frozen=True):
    """Whether what a lane has of its first tokens is what it has of them alone.

    Attributes:
        again, trace, lane, extras: As `looks_ahead` was given them.
        batch, whole: All tokens, and what was computed over them.
    """

    again: Recomputer
    trace: Trace
    lane: Lane
    batch: Batch
    whole: Forward
    extras: Extras

    @property
    def dtype(self) -> str | None:
        """That of the pass; None: the model's own."""
        return None if self.lane.dtype == self.trace.meta.model.dtype else self.lane.dtype

    @property
    def wide(self) -> bool:
        """Whether the choice of an expert does not flip by rounding."""
        return self.lane.dtype in _WIDE

    @property
    def limit(self) -> float:
        """What is rounding, relative to the largest number.

        A wider lane is not exact to its own last bits: models round to float32 inside, in softmax,
        norms and rotary tables.
        """
        meta = self.trace.meta
        products = meta.model.products if self.lane.dtype == "float32" else ""
        return _TIMES * tolerance(products or "float32", max(1, len(meta.sites)))[0]

    def answer(self, end: int, cut: Batch, later: int) -> Note | None:
        """The finding or note, of texts that were `cut` after `end` tokens; `later` ones follow.

        Raises:
            CannotRecomputeError: They could not be computed.
        """
        short = self.again.run(cut, dtype=self.dtype)
        found, text = self.moved(short, cut) if self.wide else None, (cut, short)
        if self.wide and not (found and (_sees_later(found.call) or self.is_first(found))):
            found, text = self.first_few(end, (found, text))
        otherwise = self.what_else(cut, short, found)
        if otherwise is not None or found is None:
            return otherwise
        few, calls = text[0].paths, text[1].calls
        if not _sees_later(found.call):
            rounded = few_values(found, calls, self.whole.calls, few, self.limit)
            if rounded is not None:
                return rounded
        return _not_causal(self.trace, found, len(few[0].tokens), later)

    def moved(self, short: Forward, cut: Batch) -> Moved | None:
        """The first attention whose rows moved between a short text and the whole one."""
        return moved(short.calls, self.whole.calls, cut.paths, self.limit)

    def sees_last(self) -> bool:
        """Whether rows of earlier tokens move where a text of the same length ends otherwise."""
        paths = self.batch.paths
        ends = [copy(path) for path in paths]
        for path in ends:
            path.tokens = [*path.tokens[:-1], _another(path.tokens)]
        other = self.again.run(replace(self.batch, paths=ends), dtype=self.dtype)
        fewer = _cut(paths, min(len(path.tokens) for path in paths) - 1, self.extras).paths
        return any(
            rows_apart(one.output, there.output, fewer) > self.limit
            for one, there in pairs(self.whole.calls, other.calls)
            if one.kind == "self"
        )

    def is_first(self, found: Moved) -> bool:
        """Whether no attention came before the one whose rows moved."""
        return found.whole is next(one for one in self.whole.calls if one.kind == "self")

    def first_few(
        self, end: int, so_far: tuple[Moved | None, tuple[Batch, Forward]]
    ) -> tuple[Moved | None, tuple[Batch, Forward]]:
        """What moved of a text that is shorter yet, and that text; else what is known `so_far`.

        Layers that round by the largest number of a text: it may have been among the first `end`,
        in some of them. What a mask shows of a prompt, to its own tokens, does not move when later
        ones follow.
        """
        known, text = so_far
        paths = self.batch.paths
        few = max(path.padding for path in paths) + FEW
        # where the caller said who sees whom, the first tokens see later ones on purpose
        if few >= end or given_table(text[0].extra) is not None:
            return so_far
        fewer = _cut(paths, few, self.extras)
        with suppress(CannotRecomputeError):
            short = self.again.run(fewer, dtype=self.dtype)
            found = self.moved(short, fewer)
            shown = found is not None and _sees_later(found.whole)
            if found is not None and not shown and self.is_earlier(found, known):
                return found, (fewer, short)
        return so_far

    def is_earlier(self, found: Moved, known: Moved | None) -> bool:
        """Whether rows moved in an attention before the one that is known to have."""
        calls = self.whole.calls
        places = [
            next(n for n, call in enumerate(calls) if call is one.whole)
            for one in (found, known)
            if one is not None
        ]
        return places == sorted(set(places))

    def what_else(self, cut: Batch, short: Forward, found: Moved | None) -> Note | None:
        """Why rows come out otherwise in any call, of the same tokens too; None: they don't."""
        # the first rows of a longer text may draw the same random numbers
        own = self.dtype is None
        if found is None and not own:
            return None
        random = varies(self.again, cut, short, self.dtype)
        if random is not None or not self.wide:
            return random
        moved, plain = (0.0 if found is None else found.far), (self.whole if own else None)
        return rounds_inside(self.again, self.batch, self.limit, moved=moved, plain=plain)


def _not_causal(trace: Trace, found: Moved, end: int, later: int) -> Note:
    """The finding: rows of the first tokens moved, at the step whose tokens came later."""
    call = found.call
    sites = trace.meta.sites
    site = next((s.index for s in sites if (s.module, s.call) == (call.module, call.call)), None)
    module = call.module or "the model"
    first = "the first token" if end == 1 else f"the first {end} tokens"
    why = "; nothing hides later tokens from them, as in the prefix of a prefix LM"
    padding = ", only in sequences with padding: it reaches their tokens" if found.padded else ""
    text = (
        f"NOT-CAUSAL: without any cache, rows of {first} in {module} move by "
        f"{found.far:.1e} of their largest value when the later tokens follow"
        f"{why if _sees_later(call) else ''}{padding}; no cache can equal that"
    )
    return Note("finding", text, step=later, site=site)


def _sees_later(call: AttentionCall) -> bool:
    """Whether the mask itself lets rows see those of later tokens."""
    new, rows = call.queries.shape[2], call.keys.shape[2]
    if call.causal or new != rows or new < FEW:
        return False
    if call.visible is None:
        return True
    visible = call.visible.expand(*call.visible.shape[:-2], new, rows)
    return bool(visible.triu(1).any())


def _cut(paths: Sequence[Path], end: int, extras: Extras) -> Batch:
    """The same texts, of so many tokens; what chose experts for these is still known of them."""
    cut = [
        Path(p.tokens[:end], p.padding, _until(p.nodes, end), p.root, p.row, _until(p.shared, end))
        for p in paths
    ]
    return Batch(cut, [end - 1], extras.of(cut))


def _another(tokens: Sequence[int]) -> int:
    """A token of a text that is not its last one."""
    return next((one for one in tokens if one != tokens[-1]), tokens[-1] ^ 1)


def _until(nodes: Sequence[Node], end: int) -> list[Node]:
    return [replace(one, end=min(one.end, end)) for one in nodes if one.start < end]
