"""From forwards to the steps of a trace, one after the other, into a sink.

A step waits until the next forward begins, so that the token chosen after it can be in it; a loop
that knows it says so at once. Nothing grows with the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter_ns
from typing import Protocol

from torch import Tensor, nn

from kvtrace.errors import KvtraceError, RecordError, WriteError
from kvtrace.files import StepRows
from kvtrace.record.attended import Attended, Checked
from kvtrace.record.bytes import held_bytes, step_bytes
from kvtrace.record.calls import AttentionCall
from kvtrace.record.card import text_config
from kvtrace.record.cost import CostMeter, Measured
from kvtrace.record.forward import Beginning, Forward
from kvtrace.record.ledger import Ledger, LedgerStep
from kvtrace.record.masks import Compactor
from kvtrace.record.paged.places import packed_of
from kvtrace.record.phases import Phases
from kvtrace.record.positions import Positions, positions
from kvtrace.record.sites import Sites
from kvtrace.record.texts import Texts
from kvtrace.record.top import TopReader
from kvtrace.text import safe
from kvtrace.trace import CacheLayer, Cost, Ending, Meta, Note, Site, Step


class Sink(Protocol):
    """Takes in a trace; a `TraceWriter` is one."""

    def append(self, step: Step, rows: StepRows) -> None:
        """A step with its rows."""

    def extend(self, meta: Meta) -> None:
        """A META with more sites or cache layers."""

    def note(self, note: Note) -> None:
        """A note."""

    def end(self, ending: Ending) -> None:
        """Why it ended."""


Tokens = tuple[tuple[int, ...], ...]

Check = Callable[[Forward], Mapping[int, Checked]]
"""Self-check of a forward: place of a call to (error, scale); may leave calls out."""

Tables = tuple[tuple[Site, ...], tuple[CacheLayer, ...]]


@dataclass(slots=True)
class Options:
    """What a recorder works with, besides a model.

    Attributes:
        texts: Text of token ids.
        check: Self-check.
        on_step: Told of each step that was written, with its forward's logits gone.
        on_forward: Told of each forward that became a step, by the step's number.
        placed: Says of sites and cache layers which heads of the whole model they are.
    """

    texts: Texts = field(default_factory=Texts)
    check: Check | None = None
    on_step: Callable[[Step], None] | None = None
    on_forward: Callable[[int, Forward], None] | None = None
    placed: Callable[[Sequence[Site], Sequence[CacheLayer]], Tables] | None = None


@dataclass(slots=True)
class _Pending:
    """A step that waits for its chosen token."""

    step: Step
    rows: StepRows
    caches: frozenset[int]
    told: tuple[int | None, ...] | None = None


class Recorder:
    """Turns forwards into steps; its methods are `Watch`'s callbacks."""

    def __init__(
        self, model: nn.Module, sink: Sink, meta: Meta, options: Options | None = None
    ) -> None:
        """For one model and one trace.

        Args:
            model: The watched one.
            sink: Has META already.
            meta: What is known before the first forward: no sites, no cache layers.
            options: Further ones.
        """
        self.meta = meta
        self.num_steps = 0
        self.failure: KvtraceError | None = None
        self.paused = False
        self.phases = Phases()
        self._sink = sink
        self._options = options or Options()
        self._ledger = Ledger()
        self._sites = Sites()
        self._top = TopReader()
        self._meter = CostMeter(model)
        self._chunk = _chunk(model)
        self._pending: list[_Pending] = []
        self._latest: dict[int, int] = {}
        self._before: Tokens = ()
        self._named: list[int] | None = None
        self._tables = meta.sites, meta.cache_layers

    # -- callbacks of Watch ----------------------------------------------------------------

    def begin(self, beginning: Beginning) -> None:
        """A forward begins: write the step before, with the token that is fed now."""
        if self.failure is not None or self.paused:
            return
        for pending in self._pending:
            pending.told = pending.told or self._fed(beginning, pending)
        self.flush()
        self._ledger.derived.begin(beginning.tokens, beginning.arguments, self.num_steps)
        beginning.keep(self._keep)
        self._meter.begin(beginning.seen)

    def forward(self, forward: Forward) -> None:
        """A forward is over."""
        if self.paused:
            return
        self._meter.end(len(forward.calls))
        if self.failure is not None:
            return
        start = perf_counter_ns()
        try:
            step, rows, caches = self._step(forward)
            if self._options.on_forward is not None:
                self._options.on_forward(step.number, forward)
        except KvtraceError as error:
            self.failure = error
            return
        except Exception as error:
            self._fail(error)
            return
        spent = forward.own_ns + perf_counter_ns() - start
        self._pending.append(_Pending(replace(step, recorder_ns=spent), rows, caches))
        self.num_steps += 1

    def _keep(self, call: AttentionCall) -> AttentionCall:
        """Look at a call before the model goes on; what fails in it is no matter of the model's."""
        if self.failure is None and not self.paused:
            try:
                return self._ledger.derived.see(call)
            except Exception as error:
                self._fail(error)
        return call

    def _fail(self, error: Exception) -> None:
        """The run is not ours to break: the recording ends, the model goes on."""
        self.failure = RecordError(
            f"step {self.num_steps}: {type(error).__name__}: {safe(str(error), 200)}; "
            "what was recorded so far is kept. Please report this."
        )
        self.failure.__cause__ = error

    def failed(self) -> None:
        """A forward raised."""
        if not self.paused:
            self._meter.drop()

    # -- the loop's side -------------------------------------------------------------------

    def choose(self, tokens: tuple[int | None, ...]) -> None:
        """The tokens chosen after the last forward, per sequence: the step is written now."""
        if self._pending:
            self.flush(tokens)

    def told(self, cache: int, token: int) -> None:
        """The token chosen for the one sequence of a cache, after the last forward it was in."""
        for pending in self._pending:
            if cache in pending.caches:
                pending.told = (token,)

    def flush(self, chosen: tuple[int | None, ...] | None = None) -> None:
        """Write the steps that wait.

        A disk that is full or fails ends the recording, not the run: see `failure`.

        Args:
            chosen: Tokens chosen after the last of them, where nobody told yet.
        """
        waiting, self._pending = self._pending, []
        if waiting and waiting[-1].told is None:
            waiting[-1].told = chosen
        for pending in waiting:
            if self.failure is None:
                self._flush(pending)

    def _flush(self, pending: _Pending) -> None:
        step, chosen = pending.step, pending.told
        if chosen is not None and len(chosen) == step.num_sequences:
            texts = {**step.texts, **self._options.texts.of([c for c in chosen if c is not None])}
            step = replace(step, chosen=chosen, texts=texts)
        try:
            self._sink.append(step, pending.rows)
        except KvtraceError as error:
            self.failure = error
            return
        if self._options.on_step is not None:
            self._options.on_step(step)

    def tell(self, unseen: tuple[str, ...], notes: tuple[str, ...]) -> None:
        """What was not seen, and what qualifies what was: META says it.

        Args:
            unseen: Modules that look like attention and were not seen to attend.
            notes: Sentences on the recording itself.
        """
        none = () if self.meta.sites else ("no attention was seen: there is nothing to show",)
        said = (*self.meta.not_recorded, *none, *notes, *self._meter.gaps())
        said = tuple(dict.fromkeys(said))
        if (unseen, said) != (self.meta.unseen, self.meta.not_recorded):
            self._write_meta(replace(self.meta, unseen=unseen, not_recorded=said))
        self._remark()

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
        """The step that waits."""
        return self._pending[-1].step if self._pending else None

    # -- a step ----------------------------------------------------------------------------

    def _step(self, forward: Forward) -> tuple[Step, StepRows, frozenset[int]]:
        where = positions(forward, self._ledger.at(forward))
        entry = self._ledger.step(forward, where, self.num_steps)
        origin = where[0][0] if where and where[0] else 0
        attended = Attended()
        compactor = Compactor(forward.sequences, origin, self._chunk)
        attended.collect(
            forward, entry, self._sites, compactor, self._named, self._ledger.stores.dtypes
        )
        top = self._top.read(forward.logits, forward.sequences)
        tokens = _tokens(forward)
        copied = attended.copying.finish()
        checked = {} if self._options.check is None else dict(self._options.check(forward))
        for place in [one for one in checked if not self._ledger.intact(forward.calls[one])]:
            del checked[place]
        self._extend()
        number = self.num_steps
        step = Step(
            number=number,
            phase=self._phase(forward, where, entry, tokens),
            parent=self._parent(entry, tokens, where),
            tokens=tokens,
            positions=where,
            chosen=(None,) * len(tokens),
            top=top,
            caches=entry.groups,
            sites=attended.site_steps(copied, checked, entry.stores, forward.new),
            events=entry.events,
            cost=self._cost(forward, entry, where),
            elapsed_ns=forward.elapsed_ns,
            texts=self._options.texts.of(_ids(tokens, top)),
            packed=packed_of(forward.part_of),
        )
        self._before, self._named = tokens, attended.sites
        for cache in entry.caches:
            self._latest.pop(cache, None)
            self._latest[cache] = number
        while len(self._latest) > 1024:
            del self._latest[next(iter(self._latest))]
        return step, attended.step_rows(copied), frozenset(entry.caches)

    def _parent(self, entry: LedgerStep, tokens: Tokens, where: Positions) -> int | None:
        """The step whose cache this one continued; without a cache, whose tokens."""
        if not entry.caches:
            if entry.parent is not None:
                return entry.parent
            return self.num_steps - 1 if _extends(tokens, self._before) else None
        layers = self._ledger.stores.layers
        # rows made anew may equal those of another cache with the same text
        continued = any(
            group.length_before for group in entry.groups if layers[group.layers[0]].held
        )
        # of rows that a faulty cache changed none is known again, but its tokens have a place
        continued = continued or any(row[0] > 0 for row in where if row)
        found = [self._latest[one] for one in entry.caches if one in self._latest]
        return max(found) if found and continued else entry.donor

    def _phase(self, forward: Forward, where: Positions, entry: LedgerStep, tokens: Tokens) -> str:
        """Prefill or decode; an engine says how long the prompt of a request is."""
        prompt = None if forward.part_of is None else forward.part_of.prompt
        if prompt is None:
            again = _extends(tokens, self._before) and len(tokens[0]) - len(self._before[0])
            return self.phases.of(forward, where, entry, entry.grown or int(again))
        return "decode" if where[0][0] >= prompt else "prefill"

    def _cost(self, forward: Forward, entry: LedgerStep, where: Positions) -> Cost:
        past = max((row[0] for row in where if row), default=0)
        logits = None if forward.logits is None else tuple(forward.logits.shape)
        if forward.part_of is not None and forward.part_of.whole is not None:
            self._meter.measure(forward.part_of.whole)  # learns what a token costs
        alike = None if forward.batch is None else forward.batch.attended
        sizes = Measured(forward.calls, forward.sequences, forward.new, max(0, past), logits, alike)
        cached, recomputed = self._meter.measure(sizes)
        read, written = step_bytes(entry.groups, self._ledger.stores)
        return Cost(
            cached,
            recomputed,
            self._meter.weight_bytes(sizes),
            read,
            written,
            held_bytes(forward) + entry.own_bytes,
        )

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

    def _fed(self, beginning: Beginning, pending: _Pending) -> tuple[int | None, ...] | None:
        """The tokens fed now, if they are the ones chosen after the step that waits."""
        tokens, before = beginning.tokens, pending.step
        if before.packed is not None:
            fed = [beginning.fed[one] for one in pending.caches if one in beginning.fed]
            return tuple(fed) if before.top else None
        moved = any(one.kind != "crop" for one in beginning.changes)
        if tokens is None or moved or tokens.dim() != 2:
            return None
        if not pending.caches:
            rows = tuple(tuple(row) for row in tokens.tolist())
            return tuple(row[before.new] for row in rows) if _extends(rows, before.tokens) else None
        if not beginning.caches & pending.caches:
            return None
        if not self.phases.decodes(tokens.shape[1], before):
            return None
        return tuple(tokens[:, 0].tolist())


def _extends(tokens: Tokens, before: Tokens) -> bool:
    """Whether every sequence begins with what it was before, and goes on."""
    return len(tokens) == len(before) > 0 and all(
        len(now) > len(old) > 0 and now[: len(old)] == old
        for now, old in zip(tokens, before, strict=True)
    )


def _chunk(model: nn.Module) -> int | None:
    """Chunk size of chunked attention that the config names."""
    size = getattr(text_config(model), "attention_chunk_size", None)
    return size if isinstance(size, int) else None


def _tokens(forward: Forward) -> Tokens:
    """Ids in, [sequences][new]; -1 where only embeddings were given."""
    found = forward.tokens
    if isinstance(found, Tensor) and found.numel() == forward.sequences * forward.new:
        rows = found.reshape(forward.sequences, forward.new).tolist()
        return tuple(tuple(row) for row in rows)
    return ((-1,) * forward.new,) * forward.sequences


def _ids(tokens: Tokens, top: tuple[object, ...]) -> list[int]:
    """All token ids a step names."""
    found = [token for row in tokens for token in row]
    for one in top:
        found += list(getattr(one, "ids", ()))
    return found
