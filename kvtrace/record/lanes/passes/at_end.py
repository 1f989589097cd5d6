"""The recomputed lane and the referee in one pass over each final token sequence.

A causal model's rows do not depend on later tokens, so one forward without a cache gives every
step's recomputed q, k, v and output. Rows of the cached lane are read back from the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.compared.cached import Memory
from kvtrace.record.lanes.compared.compare import Comparer, in_turn
from kvtrace.record.lanes.compared.logits import KeptLogits, compare_logits
from kvtrace.record.lanes.compared.stored import crossed, pass_bytes, whole_pass
from kvtrace.record.lanes.compared.tally import Tally
from kvtrace.record.lanes.given.extras import Extras
from kvtrace.record.lanes.limits.causal import looks_ahead
from kvtrace.record.lanes.limits.hidden import Hidden, ends, hidden_in
from kvtrace.record.lanes.limits.remembered import Memories
from kvtrace.record.lanes.limits.room import at_once, in_room, is_whole, only_first, within
from kvtrace.record.lanes.passes.batch import Batch, CannotRecomputeError
from kvtrace.record.lanes.passes.portions import portions
from kvtrace.record.lanes.passes.recompute import Recomputer
from kvtrace.record.lanes.paths import Node, Path, Paths
from kvtrace.record.lanes.sink import LaneSink
from kvtrace.trace import ROWS_LEFT_OUT, Lane, Note, Trace

TOKENS_AT_ONCE = 1 << 14
"""Tokens in one batch of paths, where there are more paths than the run had sequences."""

KEPT_BYTES = 1 << 28
"""A pass up to this size is kept whole; a larger one only where lanes part, or on request."""

LOGITS_AT_ONCE = 1 << 28
"""Logits that one forward makes at most; rows beyond that are not asked for."""


@dataclass(slots=True)
class OncePass:
    """One lane over a whole run.

    Attributes:
        again: Computes the tokens again.
        trace: What was recorded of it, all steps written.
        logits: The cached lane's.
        extras: Arguments of the run besides tokens and cache.
        keep_rows: Keep every pass, however large.
        since: The first step that is compared; earlier ones were before, or can't be any more.
        passes: Passes kept so far, by lane.
        memory: Rows that were read for one lane, for the others.
    """

    again: Recomputer
    trace: Trace
    logits: KeptLogits
    extras: Extras = field(default_factory=Extras)
    keep_rows: bool = False
    since: int = 0
    passes: dict[str, int] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    _room: tuple[int, Note] | None = None
    _rows: dict[int, dict[int, tuple[int, int, int]]] = field(default_factory=dict)

    def run(self, lane: Lane, sink: LaneSink, *, dtype: str | None = None) -> bool:
        """Compute the lane and write its comparisons.

        Args:
            lane: Named in META already.
            sink: Where comparisons go.
            dtype: The model's parameters are taken in this dtype; None: as they are.

        Returns:
            Whether anything was compared.
        """
        comparer = Comparer(self.trace, lane, self.memory)
        self._rows.clear()
        paths = self._paths()
        batches = self._batches(paths)
        left = _nodes_left(paths.paths)
        held: dict[int, tuple[Tally, int]] = {}
        compared = asked = False
        for given in batches:
            try:
                batch, forward = self._whole(given, dtype, comparer)
            except CannotRecomputeError as error:
                text = f"could not compute the {lane.name} lane: {error}"
                comparer.findings.setdefault(text, Note("note", text))
                continue
            compared = True
            if self._compare(comparer, forward, batch, left, held, sink) and not asked:
                asked = True
                ahead = looks_ahead(self.again, self.trace, lane, (batch, forward), self.extras)
                if ahead is not None:
                    comparer.findings.setdefault(ahead.text, ahead)
        if paths.unknown and paths.unknown[0] not in self.extras.apart:
            text = f"{lane.name} lane: {len(paths.unknown)} steps went on from tokens not recorded"
            comparer.findings.setdefault(text, Note("note", text, step=paths.unknown[0]))
        for note in comparer.findings.values():
            sink.note(note)
        return compared

    def _whole(self, batch: Batch, dtype: str | None, comparer: Comparer) -> tuple[Batch, Forward]:
        """A batch and its pass, as far as the model drops no rows of it by itself.

        Raises:
            CannotRecomputeError: It does not run over tokens alone.
        """
        batch, forward = self._at_once(batch, dtype, comparer)
        fits = in_room(batch, forward, self.extras)
        if fits is None:
            return batch, forward
        less = self.again.run(fits[0], dtype=dtype)
        if not is_whole(fits[0], less) and not only_first(fits[0]):
            return batch, forward
        comparer.findings.setdefault(fits[1].text, fits[1])
        return fits[0], less

    def settle(self, batch: Batch, dtype: str | None = None) -> None:
        """Find out which way works, and how long a text it takes where this one is too long.

        Raises:
            CannotRecomputeError: None does.
        """
        try:
            self.again.settle(batch, dtype)
        except CannotRecomputeError as error:
            self._shorten(batch, dtype, error)

    def _at_once(
        self, batch: Batch, dtype: str | None, comparer: Comparer
    ) -> tuple[Batch, Forward]:
        """A batch and its pass, as far as the model takes so many tokens at once.

        Raises:
            CannotRecomputeError: It does not run over tokens alone.
        """
        if self._room is None:
            try:
                return batch, self.again.run(batch, dtype=dtype)
            except CannotRecomputeError as error:
                room, note = self._shorten(batch, dtype, error)
        else:
            room, note = self._room
        cut = within(batch, room, self.extras) if batch.rows > room else batch
        forward = self.again.run(cut or batch, dtype=dtype)
        if cut not in (None, batch):
            comparer.findings.setdefault(note.text, note)
        return cut or batch, forward

    def _shorten(
        self, batch: Batch, dtype: str | None, error: CannotRecomputeError
    ) -> tuple[int, Note]:
        """How many tokens go at once, where a whole text does not.

        Raises:
            CannotRecomputeError: It is not its length that keeps it from being computed again.
        """

        def goes(shorter: Batch) -> bool:
            try:
                self.again.run(shorter, dtype=dtype)
            except CannotRecomputeError:
                return False
            return True

        self._room = at_once(batch, goes, self.extras, str(error))
        if self._room is None:
            raise error
        return self._room

    def _compare(
        self,
        comparer: Comparer,
        forward: Forward,
        batch: Batch,
        left: dict[int, int],
        held: dict[int, tuple[Tally, int]],
        sink: LaneSink,
    ) -> bool:
        """One batch; steps whose sequences are all done are written.

        Returns:
            Whether the lanes part, or may: nothing of a step could be compared.
        """
        part = False
        forward = comparer.at_scales(forward, batch)
        numbers = sorted({node.step for path in batch.paths for node in path.nodes})
        size = pass_bytes(self.trace.meta, batch, crossed(self.trace, batch))
        keeping = self.keep_rows or size <= KEPT_BYTES
        kept = self._keep(comparer.lane, forward, batch, sink) if keeping else None
        for portion in in_turn(numbers):
            tally = self._tally(portion, held)
            comparer.compare(forward, batch, tally)
            here = _here(batch.paths, set(portion))
            compare_logits(self.logits, forward, batch, here, tally)
            for number in portion:
                left[number] -= len(here[number])
                place = tally.place[number]
                beyond = tally.any_beyond(place)
                part = part or beyond or not tally.any_compared(place)
                if kept is None and not keeping and beyond:
                    keeping, kept = True, self._keep(comparer.lane, forward, batch, sink)
                if not keeping:
                    text = f"{comparer.lane.name} {ROWS_LEFT_OUT}"
                    comparer.findings.setdefault(text, Note("note", text))
                passes = self._pointers(number, kept, here[number])
                if left[number]:
                    held[number] = (tally, place)
                    continue
                held.pop(number, None)
                step = tally.finish(comparer.lane.name, place)
                if any(batch.paths[one].compares(number) for one, _ in here[number]):
                    sink.compare(replace(step, passes=passes))
        return part

    def _keep(self, lane: Lane, forward: Forward, batch: Batch, sink: LaneSink) -> int | None:
        """Keep a forward whole; returns its number."""
        number = self.passes.get(lane.name, 0)
        found = whole_pass(self.trace, lane, forward, batch, number)
        if found is None:
            return None
        sink.keep_pass(lane.name, *found)
        self.passes[lane.name] = number + 1
        return number

    def keep_only(self, lane: Lane, sink: LaneSink) -> None:
        """Keep passes for a lane that was compared step by step, and point its steps at them."""
        self._rows.clear()
        comparer, left_out = Comparer(self.trace, lane, self.memory), False
        for batch in self.batches():
            size = pass_bytes(self.trace.meta, batch, crossed(self.trace, batch))
            if not self.keep_rows and size > KEPT_BYTES:
                left_out = True
                continue
            try:
                forward = comparer.at_scales(self.again.run(batch), batch)
            except CannotRecomputeError:
                continue
            kept = self._keep(lane, forward, batch, sink)
            steps = {node.step for path in batch.paths for node in path.nodes}
            for number, nodes in _here(batch.paths, steps).items():
                compared = self.trace.compared(number, lane.name)
                passes = self._pointers(number, kept, nodes)
                if compared is not None and passes:
                    sink.compare(replace(compared, passes=passes))
        if left_out:
            sink.note(Note("note", f"{lane.name} {ROWS_LEFT_OUT}"))

    def _pointers(
        self, number: int, kept: int | None, nodes: Sequence[tuple[int, Node]]
    ) -> tuple[tuple[int, int, int], ...]:
        """(pass, place in it, first row) of each sequence of a step; empty until all are known.

        Beams change places, so a step's sequences may be on paths of different batches.
        """
        known = self._rows.setdefault(number, {})
        if kept is not None:
            known.update((node.sequence, (kept, place, node.start)) for place, node in nodes)
        whole = len(known) == self.trace.step(number).num_sequences
        return tuple(known[sequence] for sequence in sorted(known)) if whole else ()

    def _tally(self, portion: Sequence[int], held: dict[int, tuple[Tally, int]]) -> Tally:
        """A tally for these steps; what was begun in an earlier batch is carried over."""
        tally = Tally(self.trace.meta, portion)
        for number in portion:
            if number in held:
                tally.take_over(number, *held[number])
        return tally

    def _paths(self) -> Paths:
        paths = Paths(fed=self.extras.embedded, apart=self.extras.apart)
        encoders = {one.index for one in self.trace.meta.sites if one.kind == "encoder"}
        hidden, memories = set[Hidden](), Memories(self.extras.handed)
        for step in self.trace:
            hidden.update(hidden_in(self.trace, step))
            behind, said = memories.look(self.trace, step)
            hidden |= behind
            self.again.notes |= dict.fromkeys([said] if said else [])
            sites = set(step.attending)
            # what an encoder read is no path of the decoder, also where nobody saw it attend
            encoded = sites <= encoders if sites else not (step.caches or step.top)
            if not encoded:
                paths.add(step)
        settings = self.again.settings
        settings.judge({path.root for path in paths.paths}, self.trace.numbers[-1] + 1)
        for path in paths.paths:
            path.until = ends(path, hidden, settings)
            path.nodes = [node for node in path.nodes if node.step >= self.since]
        self.again.notes |= dict.fromkeys(settings.says(paths.paths))
        return paths

    def batches(self) -> list[Batch]:
        """What is to be computed."""
        return self._batches(self._paths())

    def _batches(self, paths: Paths) -> list[Batch]:
        """Paths in the batches of the run; many branches in larger ones."""
        ready = [path for path in paths.paths if path.nodes]
        if not ready:
            return []
        widest = max(len(path.tokens) for path in ready)
        sequences = max(int(count) for count in self.trace.overview["sequences"])
        size = min(max(sequences, min(8, TOKENS_AT_ONCE // widest)), self.again.most or len(ready))
        vocab = max(1, self.trace.meta.model.vocab_size)
        out = []
        for chosen in portions(ready, size, self.extras, self.again.settings):
            ends = {n.end - 1 for p in chosen for n in p.nodes if self.logits.has(n.step)}
            keep = sorted(ends)[: max(1, LOGITS_AT_ONCE // (vocab * len(chosen)))]
            out.append(Batch(chosen, keep or [0], self.extras.of(chosen)))
        return out


def _nodes_left(paths: Sequence[Path]) -> dict[int, int]:
    """Sequences of each step that are to be compared."""
    left: dict[int, int] = {}
    for path in paths:
        for node in path.nodes:
            left[node.step] = left.get(node.step, 0) + 1
    return left


def _here(paths: Sequence[Path], steps: set[int]) -> dict[int, list[tuple[int, Node]]]:
    """Step → (place in the batch, node)."""
    found: dict[int, list[tuple[int, Node]]] = {number: [] for number in steps}
    for place, path in enumerate(paths):
        for node in path.nodes:
            if node.step in steps:
                found[node.step].append((place, node))
    return found
