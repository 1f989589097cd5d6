"""The recomputed lane step by step: after each one, a forward without a cache over its tokens.

Costs a whole forward for every step, and is what a model without a cache would pay: the time is
kept. Rows of earlier tokens must come out as in the pass before; if they do not, later tokens
changed them: the model is not causal.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from msgspec.structs import replace
from torch import Tensor

from kvtrace.files import FileSource
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.compared.compare import Comparer
from kvtrace.record.lanes.compared.logits import KeptLogits, compare_logits
from kvtrace.record.lanes.compared.tally import Tally
from kvtrace.record.lanes.compared.tolerance import tolerance
from kvtrace.record.lanes.given.extras import Extras
from kvtrace.record.lanes.limits.apart import relative
from kvtrace.record.lanes.limits.hidden import Hidden, ends, hidden_in
from kvtrace.record.lanes.limits.otherwise import rounds_inside, varies
from kvtrace.record.lanes.limits.remembered import Memories
from kvtrace.record.lanes.limits.room import in_room
from kvtrace.record.lanes.passes.batch import Batch, CannotRecomputeError
from kvtrace.record.lanes.passes.recompute import Recomputer
from kvtrace.record.lanes.paths import Node, Path, Paths
from kvtrace.record.lanes.sink import LaneSink
from kvtrace.trace import SET_WITHIN, Lane, Note, Step, Trace

_TIMES = 4.0
"""Times what is rounding: so far parameters that differ in their last bits move no rows."""

_WIDE = ("float32", "float64")

_EXPLAINED = {"NOT-CAUSAL", "not repeatable", "rounds inside"}
"""What tells why rows of earlier tokens move, once and for all."""


@dataclass(slots=True)
class EachPass:
    """Compares step after step.

    Attributes:
        again: Computes the tokens again.
        source: The trace file, growing.
        logits: The cached lane's.
        lane: Named in META already.
        extras: Arguments of the run besides tokens and cache.
    """

    again: Recomputer
    source: FileSource
    logits: KeptLogits
    lane: Lane
    extras: Extras = field(default_factory=Extras)
    _paths: Paths = field(default_factory=Paths)
    _hidden: set[Hidden] = field(default_factory=set)
    _memories: Memories = field(init=False)
    _before: tuple[Batch, Tensor] | None = None
    _said: set[str] = field(default_factory=set)
    _parted: bool = False

    def __post_init__(self) -> None:
        self._memories = Memories(self.extras.handed)
        self._paths.fed, self._paths.apart = self.extras.embedded, self.extras.apart

    def settle(self, step: Step) -> None:
        """Find out, on the first step, how the tokens can be computed again."""
        paths = Paths(fed=self.extras.embedded, apart=self.extras.apart)
        paths.add(step)
        chosen = [
            Path(path.tokens, path.padding, [], path.root, path.row, first=path.first)
            for path in paths.paths
        ]
        if chosen:
            with suppress(CannotRecomputeError):
                self.again.settle(Batch(chosen, None, self.extras.of(chosen)))

    def step(self, step: Step, sink: LaneSink) -> None:
        """Compare a step that was just written."""
        self.source.refresh()
        trace = Trace(self.source)
        kinds = {trace.meta.sites[site].kind for site in step.attending}
        if not kinds or kinds == {"encoder"}:
            return
        self._paths.add(step)
        self._paths.forget(step.number - 64)
        self._hidden.update(hidden_in(trace, step))
        behind, said = self._memories.look(trace, step)
        self._hidden |= behind
        if said:
            self._say(Note("note", said, step=step.number), sink)
        roots = {path.root for path in self._paths.paths}
        self.again.settings.judge(roots, step.number + 1)
        comparer, found = Comparer(trace, self.lane), self._passed(step, sink)
        if found is None:
            return
        batch, nodes, forward = found
        tally = Tally(trace.meta, [step.number])
        forward = comparer.at_scales(forward, batch)
        comparer.compare(forward, batch, tally)
        compare_logits(self.logits, forward, batch, {step.number: nodes}, tally)
        self.logits.drop(step.number)
        apart = tally.any_beyond(0)
        tally.elapsed_ns[0] = forward.took.ns()
        sink.compare(tally.finish(self.lane.name, 0))
        self._causal(step, forward, batch, sink)
        if apart and not self._parted:
            self._parted = True
            least = _TIMES * self.lane.tolerance
            rounding = rounds_inside(self.again, batch, least, plain=forward)
            if rounding is not None:
                self._say(rounding, sink)
        for note in comparer.findings.values():
            self._say(replace(note, step=step.number), sink)

    def _passed(
        self, step: Step, sink: LaneSink
    ) -> tuple[Batch, list[tuple[int, Node]], Forward] | None:
        """The pass beside a step, and what it is compared with; where there is none, it is said."""
        try:
            batch, nodes = self._batch(step)
            if not nodes or not any(path.compares(step.number) for path in batch.paths):
                return None
            forward = self.again.run(batch)
        except CannotRecomputeError as error:
            text = f"could not compute the {self.lane.name} lane: {error}"
            if self._before is not None:
                text = f"{text}; {SET_WITHIN}"
            self._say(Note("note", text, step=step.number), sink)
            return None
        fits = in_room(batch, forward, self.extras)
        if fits is not None:
            self._say(fits[1], sink)
            return None
        return batch, nodes, forward

    def _batch(self, step: Step) -> tuple[Batch, list[tuple[int, Node]]]:
        """The paths up to this step, cut where it ends."""
        chosen: list[Path] = []
        nodes: list[tuple[int, Node]] = []
        for path in self._paths.paths:
            for node in path.nodes:
                if node.step == step.number:
                    nodes.append((len(chosen), node))
                    tokens = path.tokens[: node.end]
                    shared = list(path.shared)
                    at = path.root, path.row
                    one = Path(tokens, path.padding, [node], *at, shared, first=path.first)
                    one.slid = path.slid
                    one.until = ends(one, self._hidden, self.again.settings)
                    chosen.append(one)
            path.shared += path.nodes
            path.nodes.clear()
        keep = sorted({node.end - 1 for _, node in nodes})
        return Batch(chosen, keep, self.extras.of(chosen)), nodes

    def _causal(self, step: Step, forward: Forward, batch: Batch, sink: LaneSink) -> None:
        """Compare the last site's keys with those of the pass before."""
        last = _last(forward)
        if last is None:
            return
        keys = last.keys.detach().float()
        before, self._before = self._before, (batch, keys)
        if before is None or len(before[0].paths) != len(batch.paths):
            return
        shared = min(before[1].shape[2], keys.shape[2])
        both = zip(before[0].paths, batch.paths, strict=True)
        if not all(_goes_on(old, new, shared) for old, new in both):
            return
        moved = _moved(before[1], keys, batch)
        if moved > self.lane.tolerance and not self._said & _EXPLAINED:
            if self.lane.dtype not in _WIDE and not self._moved_anyhow(before[0], batch):
                return
            other = varies(self.again, batch, forward)
            other = other or rounds_inside(self.again, batch, 0.0, moved=moved, plain=forward)
            if other is not None:
                self._say(other, sink)
                return
            text = (
                f"NOT-CAUSAL: keys of earlier tokens in {last.module} moved by {moved:.1e} of "
                "their largest value when a token was added; no cache can equal such a model"
            )
            self._say(Note("finding", text, step=step.number), sink)

    def _moved_anyhow(self, before: Batch, batch: Batch) -> bool:
        """Whether keys move in float32 too: narrow types round otherwise in every other shape."""
        found = []
        for one in (before, batch):
            with suppress(CannotRecomputeError):
                last = _last(self.again.run(one, dtype="float32"))
                found += [] if last is None else [last.keys.detach().float()]
        limit = _TIMES * tolerance("float32", 1)[0]
        return len(found) < 2 or _moved(found[0], found[1], batch) > limit

    def _say(self, note: Note, sink: LaneSink) -> None:
        """Once for each kind of trouble."""
        kind = note.text.split(":")[0]
        if kind not in self._said:
            self._said.add(kind)
            sink.note(note)


def _last(forward: Forward) -> AttentionCall | None:
    """The last attention of a text to itself."""
    return next((call for call in reversed(forward.calls) if call.kind == "self"), None)


def _moved(before: Tensor, keys: Tensor, batch: Batch) -> float:
    """How far keys of earlier tokens are from what they were, relative to the largest."""
    shared = min(before.shape[2], keys.shape[2])
    start = max(path.padding for path in batch.paths)
    return relative(before[:, :, start:shared], keys[:, :, start:shared])


def _goes_on(old: Path, new: Path, shared: int) -> bool:
    """Whether a path begins as the one in its place before did: with the same rows."""
    begun = (old.root, old.row, old.padding) == (new.root, new.row, new.padding)
    return begun and old.tokens[:shared] == new.tokens[:shared]
