"""From forwards to the steps of a trace, one after the other, into a sink.

A step waits until the next forward begins, so that the token chosen after it can be in it; a loop
that knows it says so at once. Nothing grows with the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns

from msgspec.structs import replace
from torch import Tensor, nn

from kvtrace.configs import setting
from kvtrace.errors import KvtraceError, WriteError
from kvtrace.record.cache.ledger import Ledger
from kvtrace.record.cache.step import LedgerStep
from kvtrace.record.capture.attention import kinds
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Beginning, Forward
from kvtrace.record.capture.symbolic import TRANSFORMED
from kvtrace.record.capture.tokens.positions import Positions, positions
from kvtrace.record.card import text_config
from kvtrace.record.cost import CostMeter
from kvtrace.record.paged.places import packed_of
from kvtrace.record.steps.attended import Attended, Checked
from kvtrace.record.steps.backlog import Backlog, Chosen, Waiting
from kvtrace.record.steps.lineage import Lineage, Tokens
from kvtrace.record.steps.masks import Compactor
from kvtrace.record.steps.phases import Phases
from kvtrace.record.steps.picks import picks_of
from kvtrace.record.steps.price import price
from kvtrace.record.steps.scribe import Scribe, Sink
from kvtrace.record.steps.sites import Sites
from kvtrace.record.steps.steady import WaitingStep, parts_of, parts_of_own
from kvtrace.record.steps.texts import Texts
from kvtrace.record.steps.top import last_rows, likeliest
from kvtrace.trace import CacheLayer, Meta, Note, Site, Step

Check = Callable[[Forward], Mapping[int, Checked]]
"""Self-check of a forward: place of a call to (error, scale); may leave calls out."""

Tables = tuple[tuple[Site, ...], tuple[CacheLayer, ...]]

_NOTHING = "no attention was seen: there is nothing to show"
_NOT_CALLED = (
    "no call of the model was seen; if its parts were called, as some loops do, "
    "`with kvtrace.record('run.kvt'):`, without the model, records them"
)


@dataclass(slots=True)
class Options:
    """What a recorder works with, besides a model.

    Attributes:
        texts: Text of token ids.
        check: Self-check.
        on_step: Told of each step that was written, with its forward's logits gone.
        on_forward: Told of each forward that became a step, by the step's number.
        placed: Says of sites and cache layers which heads of the whole model they are.
        patient: Steps may wait for company, see `Backlog`; else each is written when the next
            begins.
    """

    texts: Texts = field(default_factory=Texts)
    check: Check | None = None
    on_step: Callable[[Step], None] | None = None
    on_forward: Callable[[int, Forward], None] | None = None
    placed: Callable[[Sequence[Site], Sequence[CacheLayer]], Tables] | None = None
    patient: bool = False


class Recorder:
    """Turns forwards into steps; its methods are `Watch`'s callbacks."""

    def __init__(self, model: nn.Module, sink: Sink, meta: Meta, options: Options) -> None:
        """For one model and one trace.

        Args:
            model: The watched one.
            sink: Has META already.
            meta: What is known before the first forward: no sites, no cache layers.
            options: Further ones.
        """
        self.meta = meta
        self.num_steps = 0
        self.paused = False
        self.phases = Phases()
        self._lineage = Lineage(self.phases)
        self._sink = sink
        self._options = options
        self._ledger = Ledger()
        self._sites = Sites()
        self._meter = CostMeter(model)
        self._chunk = _chunk(model)
        self._scribe = Scribe(sink, self._options.texts, self._options.on_step)
        self._backlog = Backlog(self._scribe.write)
        self._named: list[int] | None = None
        self._tables = meta.sites, meta.cache_layers

    # -- callbacks of Watch ----------------------------------------------------------------

    def begin(self, beginning: Beginning) -> None:
        """A forward begins: write the step before, with the token that is fed now."""
        if self.failure is not None or self.paused:
            return
        with self._backlog.lock:
            for waiting in self._backlog.untold:
                waiting.told = waiting.told or self._lineage.fed(beginning, waiting)
            self._backlog.told()
            self._ledger.derived.begin(beginning.tokens, beginning.arguments, self.num_steps)
            if self._backlog.due():
                self.flush()  # the pass beside a step runs the same modules: it must not be metered
            given = beginning.tokens
            self._meter.begin(beginning.seen, () if given is None else given.shape)
            # who counts products must know which calls came before each
            beginning.keep(self._keep, None if self._meter.watches else self._keep_late)

    def forward(self, forward: Forward) -> None:
        """A forward is over."""
        if self.paused:
            return
        self._meter.end(len(forward.calls))
        if self.failure is not None:
            return
        start = perf_counter_ns()
        with self._backlog.lock:
            try:
                waiting = self._step(forward)
                if self._options.on_forward is not None:
                    self._options.on_forward(waiting.step.number, forward)
            except KvtraceError as error:
                self.failure = error
                return
            except Exception as error:
                self._fail(error)
                return
            waiting.spent_ns = forward.own_ns + perf_counter_ns() - start
            self._backlog.add(waiting)
            self.num_steps += 1

    def _keep(self, call: AttentionCall) -> AttentionCall:
        """Look at a call before the model goes on; what fails in it is no matter of the model's."""
        if self.failure is None and not self.paused:
            try:
                return self._ledger.derived.see(call)
            except Exception as error:
                self._fail(error)
        return call

    def _keep_late(self, calls: Sequence[AttentionCall]) -> Sequence[AttentionCall]:
        """Look at all calls of a forward that is over: nothing is changed any more."""
        if self.failure is None and not self.paused:
            try:
                self._ledger.derived.see_all(calls)
            except Exception as error:
                self._fail(error)
        return calls

    def _fail(self, error: Exception) -> None:
        self._scribe.fail(self.num_steps, error)

    def waits(self, forward: Forward | None) -> None:
        """A forward is over of which it shows later whether it is a step; None: it was none."""
        self._meter.forget() if forward is None else self._meter.end(len(forward.calls))

    def failed(self) -> None:
        """A forward raised."""
        if not self.paused:
            self._meter.drop()

    @property
    def failure(self) -> KvtraceError | None:
        """Why the recording ended early."""
        return self._scribe.failure

    @failure.setter
    def failure(self, failure: KvtraceError | None) -> None:
        self._scribe.failure = failure

    # -- the loop's side -------------------------------------------------------------------

    def choose(self, tokens: Chosen) -> None:
        """The tokens chosen after the last forward, per sequence: it waits for them no more."""
        with self._backlog.lock:
            untold = self._backlog.untold
            if untold:
                untold[-1].told = untold[-1].told or tokens
                self._backlog.told()
                if self._backlog.due():
                    self.flush()

    def told(self, cache: int, token: int) -> None:
        """The token chosen for the one sequence of a cache, after the last forward it was in."""
        with self._backlog.lock:
            for waiting in self._backlog.untold:
                if cache in waiting.caches:
                    waiting.told = (token,)

    def flush(self, chosen: Chosen | None = None) -> None:
        """Write the steps that wait.

        A disk that is full or fails ends the recording, not the run: see `failure`.

        Args:
            chosen: Tokens chosen after the last of them, where nobody told yet.
        """
        with self._backlog.lock:
            untold = self._backlog.untold
            if untold:
                untold[-1].told = untold[-1].told or chosen
            self._scribe.write(self._backlog.take())

    def close(self) -> None:
        """Nothing waits any more, and nobody looks at the time."""
        self._backlog.close()

    def tell(self, unseen: tuple[str, ...], notes: tuple[str, ...]) -> None:
        """What was not seen, and what qualifies what was: META says it.

        Args:
            unseen: Modules that look like attention and were not seen to attend.
            notes: Sentences on the recording itself.
        """
        layers = self._ledger.stores.layers
        unseen, linear = kinds.linear(unseen, {one.layer for one in layers if one.kind == "state"})
        notes = (linear, *notes) if linear else notes
        none = () if self.meta.sites else self._why_none(notes)
        said = (*self.meta.not_recorded, *none, *notes, *self._meter.gaps())
        said = tuple(dict.fromkeys(said))
        if (unseen, said) != (self.meta.unseen, self.meta.not_recorded):
            self._write_meta(replace(self.meta, unseen=unseen, not_recorded=said))
        self._remark()

    def _why_none(self, notes: tuple[str, ...]) -> tuple[str, ...]:
        """Sentences: why no attention was seen at all."""
        if self.num_steps:
            return (_NOTHING,)
        return tuple(one for one in notes if TRANSFORMED in one) or (_NOT_CALLED,)

    def _remark(self) -> None:
        """What must be known of some cache layers, as notes on their sites."""
        of: dict[str, list[Site]] = {}
        for site in self.meta.sites:
            remark = self.meta.cache_layers[site.reads].remark
            if remark:
                of.setdefault(remark, []).append(site)
        for remark, sites in of.items():
            more = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
            self._sink.note(Note("note", f"{sites[0].module}{more}: {remark}", site=sites[0].index))

    @property
    def last(self) -> Step | None:
        """The step that waits; its logits and self-check may not be worked out yet."""
        untold = self._backlog.untold
        return untold[-1].step if untold else None

    # -- a step ----------------------------------------------------------------------------

    def _step(self, forward: Forward) -> Waiting:
        where = positions(forward, self._ledger.at(forward))
        entry = self._ledger.step(forward, where, self.num_steps)
        origin = where[0][0] if where and where[0] else 0
        compactor = Compactor(forward.sequences, origin, self._chunk)
        tokens = _tokens(forward)
        kept = self._kept(forward, entry, compactor)
        if kept is not None:
            return self._said(forward, entry, where, tokens, kept=kept)
        self._scribe.write(self._backlog.take(untold=False))
        attended = Attended()
        attended.collect(
            forward, entry, self._sites, compactor, self._named, self._ledger.stores.dtypes
        )
        top = self._scribe.top.read(forward.logits, forward.sequences)
        copied = attended.copying.finish()
        checked = self._checked(forward)
        self._extend()
        waiting = self._said(forward, entry, where, tokens)
        sites = attended.site_steps(copied, checked, entry.stores, forward.new)
        waiting.step = replace(waiting.step, top=top, sites=sites)
        waiting.rows = attended.step_rows(copied)
        self._named = attended.sites
        return waiting

    def _kept(
        self, forward: Forward, entry: LedgerStep, compactor: Compactor
    ) -> WaitingStep | None:
        """What is worked out later of a step like the one before; None: all of it now."""
        sites, parts = self._named, None
        if sites is None or not (self._options.patient and entry.routine):
            return None
        if forward.part_of is None and forward.batch is not None:
            parts = parts_of(forward, forward.batch, compactor)
        elif forward.part_of is None and entry.steady_step is not None:
            dtypes = {self._sites.dtypes[site] for site in sites}
            parts = parts_of_own(forward, entry.steady_step, compactor, dtypes)
        if parts is None:
            return None
        last = last_rows(forward.logits, forward.sequences)
        logits = None if last is None else last.clone()
        checked = self._checked(forward)
        return WaitingStep(*parts, logits, checked, sites, tuple(entry.seq), entry.stores)

    def _checked(self, forward: Forward) -> Mapping[int, Checked]:
        """The self-check, but for calls whose rows are not there any more."""
        if self._options.check is None:
            return {}
        found = self._options.check(forward)
        return {
            place: one for place, one in found.items() if self._ledger.intact(forward.calls[place])
        }

    def _said(
        self,
        forward: Forward,
        entry: LedgerStep,
        where: Positions,
        tokens: Tokens,
        *,
        kept: WaitingStep | None = None,
    ) -> Waiting:
        """The step, but for its logits and what its sites did."""
        number, layers = self.num_steps, self._ledger.stores.layers
        phase = self._lineage.phase(forward, where, entry, tokens)
        parent = self._lineage.parent(number, entry, tokens, where, layers)
        best = () if parent is None else likeliest(forward.logits, len(tokens), forward.new)
        step = Step(
            number=number,
            phase=phase,
            parent=parent,
            tokens=tokens,
            positions=where,
            chosen=(None,) * len(tokens),
            caches=entry.groups,
            events=entry.events,
            cost=price(self._meter, forward, entry, where, self._ledger.stores),
            elapsed_ns=forward.took.called_ns,
            packed=packed_of(forward.part_of),
            picks=picks_of(forward),
            likeliest=best,
        )
        self._lineage.enter(number, entry, tokens)
        return Waiting(step, forward.took, frozenset(entry.caches), kept=kept)

    def _extend(self) -> None:
        """More META, if there is more to say of sites or cache layers than it does yet."""
        tables = tuple(self._sites.sites), tuple(self._ledger.stores.layers)
        if tables == self._tables:
            return
        self._tables = tables
        if self._options.placed is not None:
            tables = self._options.placed(*tables)
        self._write_meta(replace(self.meta, sites=tables[0], cache_layers=tables[1]))

    def _write_meta(self, meta: Meta) -> None:
        self.meta = meta
        if self.failure is not None:
            return
        try:
            self._sink.extend(meta)
        except WriteError as error:
            self.failure = error


def _chunk(model: nn.Module) -> int | None:
    """Chunk size of chunked attention that the config names."""
    size = setting(text_config(model), "attention_chunk_size")
    return size if isinstance(size, int) else None


def _tokens(forward: Forward) -> Tokens:
    """Ids in, [sequences][new]; -1 where only embeddings were given."""
    found = forward.tokens
    if isinstance(found, Tensor) and found.numel() == forward.sequences * forward.new:
        rows = found.reshape(forward.sequences, forward.new).tolist()
        return tuple(tuple(row) for row in rows)
    return ((-1,) * forward.new,) * forward.sequences
