"""What a recording needs of the other lanes: told of forwards and steps, it compares them.

"once": one pass over each final token sequence when the run is over. "each": a pass without a
cache after every step, timed, which also finds models whose rows depend on later tokens. The
referee is the recomputed lane one precision up: where both lanes stand equally far from it, they
differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from torch import Tensor, nn

from kvtrace.errors import TraceError
from kvtrace.files import FileSource
from kvtrace.record.capture.forward import Beginning, Forward
from kvtrace.record.capture.tokens.inputs import tokens_of
from kvtrace.record.lanes.compared.cached import MOST_BYTES, Memory
from kvtrace.record.lanes.compared.logits import KeptLogits
from kvtrace.record.lanes.depth import Depth
from kvtrace.record.lanes.given.extras import Extras, bound
from kvtrace.record.lanes.given.shown import led_by
from kvtrace.record.lanes.given.sources import Sources
from kvtrace.record.lanes.hooks import Hooks
from kvtrace.record.lanes.outlive import never_kept, nobody_holds
from kvtrace.record.lanes.passes.at_end import OncePass
from kvtrace.record.lanes.passes.batch import Batch, CannotRecomputeError
from kvtrace.record.lanes.passes.each_step import EachPass
from kvtrace.record.lanes.passes.recompute import Recomputer
from kvtrace.record.lanes.sink import LaneSink, with_lanes
from kvtrace.record.lanes.wanted import RECOMPUTED, LaneOptions, lane_of, tolerance_of, wanted_lanes
from kvtrace.record.lanes.weights import Weights
from kvtrace.trace import (
    HOOKS_CHANGED,
    ROWS_UNKNOWN,
    WEIGHTS_CHANGED,
    Meta,
    Note,
    Step,
    Trace,
)


@dataclass(slots=True)
class Lanes:
    """The other lanes of one recording.

    Attributes:
        model: The watched model.
        path: The trace file, being written.
        options: Which lanes.
        unwatched: Entered around each pass, so that it is not recorded itself.
    """

    model: nn.Module
    path: FilePath
    options: LaneOptions
    unwatched: Callable[[], AbstractContextManager[None]] = nullcontext
    _logits: KeptLogits = field(default_factory=KeptLogits)
    _extras: Extras = field(default_factory=Extras)
    _sources: Sources = field(default_factory=Sources)
    _each: EachPass | None = None
    _arguments_seen: bool = False
    _again: Recomputer | None = None
    _weights: Weights | None = None
    _hooks: Hooks | None = None
    _since: int = 0
    _unheld: bool = False
    _passes: dict[str, int] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)
    _unlike: str = ""
    _depth: Depth = field(init=False)
    _own: Sequence[Tensor] = ()

    def __post_init__(self) -> None:
        self._own = list(self.model.parameters())
        self._depth = Depth(self.model)

    @property
    def again(self) -> Recomputer:
        """How tokens are computed again."""
        if self._again is None:
            self._again = Recomputer(self.model)
        return self._again

    def begin(self, beginning: Beginning) -> None:
        """A forward is about to run: before the first, the model is as it will be asked again."""
        if self.options.mode != "off":
            self.again.begin(beginning)
            self._extras.embedded.begin(beginning.arguments)

    def over(self) -> None:
        """The forward that began is over: nothing but the model has run meanwhile."""
        if self._again is not None:
            self._again.settings.over()

    def forget(self) -> None:
        """The forward that was about to run is no step: what was kept before it is let go."""
        if not self._arguments_seen:
            self._again = None

    def forward(self, step: int, forward: Forward) -> None:
        """A forward became a step: keep what the trace does not hold of it."""
        if forward.part == "encoder":
            self.forget()  # its decoder is called after it, with other arguments
        if forward.part == "encoder" or self.options.mode == "off":
            return
        self._extras.add(step, forward)
        self.again.settings.became(step)
        self.again.contexts.became(step)
        self._said.update(self._extras.apart.said.values())
        if self.again.snapshot is None:
            self._extras.embedded.add(step, forward)
        else:
            self.again.told.add(step, forward, self.again.snapshot.call.ids)
            if self.again.snapshot.call.rows:
                self._extras.embedded.add(step, forward, self.again.snapshot.call.ids)
            ids = led_by(forward, first=not self._arguments_seen)
            if ids is not None:
                self._extras.embedded.led[step] = ids
            self._extras.made.keep(step, forward, self.again.rows_given())
        self._sources.add(step, forward)
        if not self._arguments_seen:
            self._arguments_seen = True
            self._unlike = _unlike(forward)
            self.again.first(forward)
            self._weights, self._hooks = Weights(self.model, self._own), Hooks(self.model)
            self._unheld = nobody_holds(forward)
        else:
            self._leave_out_changed(step, whole=forward.new > 1 and self._depth.is_whole)
        # drafts of the first layers alone are not what all layers say when asked at the end
        if self._depth.is_whole:
            self._logits.keep(step, forward.logits)
        self.again.ties.keep(step, forward.sequences, forward.new, forward.choices)

    def _leave_out_changed(self, end: int, *, whole: bool = True, over: bool = False) -> None:
        """Steps before this one are not compared where the weights are others by now."""
        if whole and self._hooks is not None:
            self._hooks.look(end)
        weights = self._weights
        # what all calls were lent is lent to the lane
        back = over and weights is not None and weights.given_back
        changed = weights is not None and not back and weights.changed(whole=whole)
        if not changed or end <= self._since:
            return
        last = end - 1
        steps = f"steps {self._since} to {last}" if last > self._since else f"step {last}"
        if self._each is None:
            self._said.add(f"{steps}: {WEIGHTS_CHANGED}")
        self._since = end

    def written(self, step: Step, meta: Meta, sink: LaneSink) -> Meta:
        """A step is in the file: compare it at once, in mode "each".

        Returns:
            META, with the lane added when it is new.
        """
        if self.options.mode != "each":
            return meta
        if self._each is None:
            source = FileSource(self.path)
            unnamed = lane_of(meta, self.again, RECOMPUTED, "each", meta.model.dtype)
            each = EachPass(self.again, source, self._logits, unnamed, self._extras)
            with self._again_as_it_was():
                each.settle(step)
            lane = lane_of(meta, self.again, RECOMPUTED, "each", meta.model.dtype)
            each.lane = lane
            meta = with_lanes(meta, [lane])
            sink.extend(meta)
            self._each = each
        self.again.ties.tolerance = tolerance_of(meta, self.again)[0]
        with self._again_as_it_was():
            self._each.step(step, sink)
        return meta

    @contextmanager
    def _again_as_it_was(self) -> Iterator[None]:
        """Around each pass: nobody watches, and the model is what the watched calls had."""
        lent = nullcontext() if self._weights is None else self._weights.as_lent()
        with self.unwatched(), self._depth.whole(), lent:
            yield

    def finish(self, meta: Meta, sink: LaneSink) -> Meta:
        """The run is over, or the weights are about to change: compute what is still missing.

        Returns:
            META, with the lanes that were added.
        """
        again = None if self._each is None else self._each.lane
        wanted = wanted_lanes(self.options, meta) if meta.sites else []
        if not meta.sites or not (wanted or again):
            return meta
        try:
            trace = Trace(FileSource(self.path))
            if self._unheld:
                meta = never_kept(meta, trace)
                sink.extend(meta)
            self._leave_out_changed(len(trace), over=True)
            if self._since < len(trace):
                meta = self._run(trace, meta, sink, wanted)
                self._since = len(trace)
            for note in self._sources.notes(trace):
                sink.note(note)
        except TraceError as error:
            sink.note(Note("note", f"lanes were not compared: {error}"))
        if (hooked := self._differed_by_hooks()) is not None:
            sink.note(Note("note", HOOKS_CHANGED, hooked))
        for text in sorted(self._said.union(self.again.notes)):
            sink.note(Note("note", text))
        for note in self.again.ties.notes(meta.sites):
            sink.note(note)
        self._said.clear()
        self.again.notes.clear()
        return meta

    def _differed_by_hooks(self) -> int | None:
        """The last step that ran with other hooks than the lanes, if any such step differs.

        Most hooks only look. A copy has those of the first call, the model itself the last ones.
        """
        hooks = self._hooks
        if hooks is None or not hooks.before or self._each is not None:
            return None
        trace = Trace(FileSource(self.path))
        copied = self.again.snapshot is not None
        numbers = [one for one in trace.numbers if copied or one < hooks.before]
        found = (
            trace.compared(number) for number in numbers if not copied or number >= hooks.since
        )
        differs = any(one is not None and bool((one.beyond > 0).any()) for one in found)
        return numbers[-1] if differs else None

    def _run(
        self,
        trace: Trace,
        meta: Meta,
        sink: LaneSink,
        wanted: Sequence[tuple[str, str, str | None]],
    ) -> Meta:
        """Every lane that is wanted over the steps that have none yet."""
        one = OncePass(
            self.again,
            trace,
            self._logits,
            self._extras,
            keep_rows=self.options.keep_rows,
            since=self._since,
            passes=self._passes,
            memory=Memory(MOST_BYTES if len(wanted) > 1 else 0),
        )
        with self._again_as_it_was():
            batches = self._batches(one, sink, wanted)
            if not batches:
                return meta
            self.again.ties.tolerance = tolerance_of(meta, self.again)[0]
            for name, dtype, upcast in wanted:
                if self._settles(one, name, batches[0], upcast):
                    lane = meta.lane(name)
                    if lane is None:
                        lane = lane_of(meta, self.again, name, "once", dtype)
                        meta = with_lanes(meta, [lane])
                        sink.extend(meta)
                    one.run(lane, sink, dtype=upcast)
                elif upcast is None:
                    return meta
        return meta

    def _batches(
        self, one: OncePass, sink: LaneSink, wanted: Sequence[tuple[str, str, str | None]]
    ) -> list[Batch]:
        """What the wanted lanes are run over; where nothing is, it is said why."""
        try:
            if self._each is not None:
                one.keep_only(self._each.lane, sink)
            batches = one.batches() if wanted else []
        except CannotRecomputeError as error:
            self._said.add(f"not recomputed: {error}")
            return []
        if wanted and not batches:
            why = self._unlike or _earlier(one.trace)
            if not why and (apart := set(self._extras.apart.said.values())):
                why, self._said = "; ".join(sorted(apart)), self._said - apart
            self._said.add(f"not recomputed: {why or 'which tokens went in was not recorded'}")
        return batches

    def _settles(self, one: OncePass, name: str, batch: Batch, upcast: str | None) -> bool:
        """Whether a lane can be computed; where it can't, it is said why."""
        try:
            one.settle(batch, upcast)
        except CannotRecomputeError as error:
            why = bound(batch.extra, batch.rows) or str(error)
            self._said.add(f"could not compute the {name} lane: {why}")
            return False
        return True


def _earlier(trace: Trace) -> str:
    """Why no path is known from its first token on; empty where that is not why."""
    first = trace.step(trace.numbers[0])
    held = max((group.length_before for group in first.caches), default=0)
    if first.parent is not None or not held:
        return ""
    return (
        f"its first step goes on from {held} rows that no recorded step wrote: cached before the "
        "recording began, or given in place of tokens as a learnt prefix is"
    )


def _unlike(forward: Forward) -> str:
    """Why the rows of a forward are not those of the ids it was given; empty where they are."""
    ids = tokens_of(forward.arguments)
    if forward.tokens is not None or ids is None:
        return ""
    return f"{ids.shape[-1]} ids were given for {forward.new} rows: {ROWS_UNKNOWN}"
