"""Caches of people's own: what a step did to rows that no known cache handed over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from kvtrace.record.cache import runs
from kvtrace.record.cache.books import Book, Entry
from kvtrace.record.cache.own.call_effect import (
    CallEffect,
    Line,
    attended_runs,
    rows_for_none,
    told_places,
)
from kvtrace.record.cache.own.derived import Derived
from kvtrace.record.cache.own.find_holder import nbytes_of
from kvtrace.record.cache.own.learn import Learning, say
from kvtrace.record.cache.own.seen_call import SeenCall, seen_of
from kvtrace.record.cache.own.site_use import SiteUse, Slots
from kvtrace.record.cache.own.steady import SteadyStep
from kvtrace.record.cache.own.whole_step import events_of, parent_of
from kvtrace.record.cache.stores import Stores
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import CacheUpdate, Forward
from kvtrace.record.flow.rows.row_step import RowStep
from kvtrace.record.flow.rows.slots import Numbers
from kvtrace.record.flow.rows.standing import slots_of_tokens
from kvtrace.trace import CacheEvent
from kvtrace.trace.step import Runs


@dataclass(slots=True)
class OwnCaches:
    """Follows such caches; `derived` is told of calls while they run."""

    stores: Stores
    derived: Derived = field(init=False)
    _uses: dict[int, SiteUse] = field(default_factory=dict)
    _made: dict[int, CallEffect] = field(default_factory=dict)
    _of_text: set[int] = field(default_factory=set)
    _seen: dict[tuple[str, int], SeenCall] = field(default_factory=dict)
    _last: dict[int, tuple[int, tuple[Runs, ...]]] = field(default_factory=dict)
    _memo: dict[tuple[object, ...], Entry] = field(default_factory=dict)
    _grown: dict[tuple[object, ...], tuple[Entry, object]] = field(default_factory=dict)
    _learning: Learning = field(default_factory=Learning)
    _line: Line | None = None
    _steady_step: SteadyStep | None = None

    def __post_init__(self) -> None:
        self.derived = Derived(self.stores)

    def begin(self) -> None:
        """A forward is entered."""
        self._made, self._seen, self._memo = {}, {}, {}
        self._grown, self._steady_step = {}, None
        self._learning.begin()

    def made(
        self,
        call: AttentionCall,
        forward: Forward,
        origin: tuple[Entry, CacheUpdate] | None = None,
        limit: int | None = None,
    ) -> CallEffect:
        """Enter a call.

        Args:
            call: It.
            forward: Its forward.
            origin: The step of the known cache layer its rows were made from, if they were, and
                what it handed back.
            limit: Rows that are written, where a buffer has more.
        """
        seen = self.derived.of(call, limit)
        use = self._uses.setdefault(seen.store, SiteUse())
        self._learning.twins.meet(use, seen)
        capacity = self.stores.layers[seen.store].capacity
        kept = seen.step.parent is not None and not seen.step.computed
        if kept and use.found and use.outgrown(len(seen.step.slots), capacity, call.keys):
            use.move()
        if origin is None and use.goes_on(seen.step):
            entry, rows = self._entry(seen, None, None, cached=True), (seen.keys, seen.values)
            return self._note(
                call, CallEffect(seen.store, entry, rows, None, cached=True, seen=seen)
            )
        if use.left is not None:
            seen = replace(seen, step=replace(seen.step, before=len(use.left)))
        if origin is None:
            again = bool(self.derived.fed.grown)
            self._learning.learn(use, call, seen, forward, again=again)
            others = slots_of_tokens(seen.step.positions[0], seen.step.slots)
            use.beside = others is not None and (use.beside or use.left == others)
            use.left = others if use.beside else use.left
        cached = origin is None and use.cached
        entry = self._entry(seen, origin, use.left if cached else None, cached=cached)
        slots = None if seen.step.whole else seen.step.slots
        made = CallEffect(seen.store, entry, (seen.keys, seen.values), slots, cached, seen)
        say(self.stores, use, made, call.visible, derived=origin is not None)
        return self._note(call, made)

    def steady_step(self, calls: Sequence[AttentionCall]) -> tuple[Entry, SteadyStep, int] | None:
        """Enter all calls of a forward at once, if each only went on as in the step before.

        Returns:
            What happened to each cache layer, what the calls did, and memory of the caches.
        """
        line, found = self._line, self.derived.steady_step(calls)
        if line is None or found is None or found.sites.stores != line.stores:
            return None
        if line.room is not None and len(seen_of(found, 0).step.slots) > line.room:
            return None
        self.begin()
        entry = self._entry(seen_of(found, 0), None, None, cached=True)
        self._last.update(dict.fromkeys(line.stores, (self.derived.number, entry.attended)))
        self._steady_step = replace(found, calls=())
        rows = sum(runs.count(one) for one in entry.after.held)
        return entry, found, rows * line.row_bytes + line.buffer_bytes

    def over(self) -> None:
        """All calls of a forward are entered: whether the next one's may be entered at once."""
        made = list(self._made.values())
        self._line = None
        if made and all(
            one.entry is made[0].entry and self._uses[one.store].goes_on(one.seen.step)
            for one in made
        ):
            _, row_bytes, buffer_bytes = self._memory()
            rooms = [self.stores.layers[store].capacity for store in self._made]
            room = min([one for one in rooms if one is not None], default=None)
            self._line = Line(tuple(self._made), row_bytes, buffer_bytes, room)
        self.derived.over()

    def _note(self, call: AttentionCall, made: CallEffect) -> CallEffect:
        """What a call did, for what is asked of the whole forward."""
        self._made[made.store] = made
        if call.kind == "self":
            self._of_text.add(made.store)
        self._seen[call.module, call.call] = made.seen
        return made

    # -- one step --------------------------------------------------------------------------

    def _entry(
        self,
        seen: SeenCall,
        source: tuple[Entry, CacheUpdate] | None,
        left: Slots | None,
        *,
        cached: bool,
    ) -> Entry:
        store, step, last = seen.store, seen.step, self._last.get(seen.store)
        # of rows that were only added: once for all layers that went on alike
        only_added = source is None and left is None and step.fresh is not None
        before = (0, 0) if last is None else (last[0], id(last[1]))
        alike = (id(step.cells), id(step.positions), step.parent, step.before, before, cached)
        known = self._grown.get(alike) if only_added else None
        if known is not None:
            self._last[store] = (self.derived.number, known[0].attended)
            return known[0]
        found = self._entered(seen, source, left, cached=cached)
        # what layers attended to alike is one and the same from here on
        self._last[store] = (self.derived.number, found.attended)
        if only_added:
            self._grown[alike] = (found, (step, last))
        return found

    def _entered(
        self,
        seen: SeenCall,
        source: tuple[Entry, CacheUpdate] | None,
        left: Slots | None,
        *,
        cached: bool,
    ) -> Entry:
        store, step = seen.store, seen.step
        origin = None if source is None else source[0]
        told = () if source is None else told_places(seen, *source)
        attended = self._attended(store, step, told)
        before = step.before if step.parent is not None else 0
        if origin is not None:
            before = origin.before
        new = step.rows if origin is None else origin.rows
        none = rows_for_none(step, told)
        new += none if origin is not None else 0
        rewritten = 0
        if before and (cached or origin is not None):
            rewritten = max(step.again, step.rows - new, step.rows - step.new - none)
        if origin is None and not cached:
            before = 0
        key = (attended, step.first_cell, step.rows, before, rewritten, left, cached, not origin)
        found = self._memo.get(key)
        if found is None:
            kept = Book(attended)
            # what a first step's rows become shows later: none, should its cache layer be uncached
            if origin is None and not cached and step.parent is not None:
                kept = Book(((),) * len(attended))
            elif left is not None:
                kept = Book(tuple(runs.of_slots(one, left) for one in attended))
            entry = Entry(attended, kept, step.first_cell, step.rows, before, rewritten)
            found = self._memo[key] = entry
        return found

    def _attended(self, store: int, step: RowStep, told: Sequence[Numbers]) -> tuple[Runs, ...]:
        """What each sequence attended to; of rows that were only added, the old runs and more."""
        last = self._last.get(store)
        if step.fresh is not None and last is not None and not told and last[0] == step.parent:
            first = step.cells.shape[1] - step.rows
            found = tuple(
                runs.appended(old, runs.written(int(step.cells[b, first]), places.tolist(), 0))
                for b, (old, places) in enumerate(
                    zip(last[1], step.positions[:, first:], strict=True)
                )
            )
        else:
            found = tuple(attended_runs(step, b, told) for b in range(len(step.at)))
        return found

    # -- the whole forward -----------------------------------------------------------------

    @property
    def parent(self) -> int | None:
        """The step whose rows this one goes on with."""
        return parent_of(self._made, self._of_text)

    @property
    def events(self) -> tuple[CacheEvent, ...]:
        """What happened to the caches between the step before and this one."""
        return events_of(self._made, self._of_text)

    def at(self, forward: Forward) -> tuple[int, ...] | None:
        """Position of the forward's first token per sequence, as its rows tell it."""
        if forward.updates:
            return None
        for call in forward.calls:
            if call.kind == "self" and call.queries.shape[2] == forward.new:
                step = self.derived.of(call).step
                if len(step.at) == forward.sequences:
                    return tuple(int(n) for n in step.at)
        return None

    def intact(self, call: AttentionCall) -> bool:
        """Whether what a call was given is there still, as it was when the call was made."""
        seen = self._seen.get((call.module, call.call))
        place = None if self._steady_step is None else self._steady_step.place(call)
        if self._steady_step is not None and place is not None:
            seen = seen_of(self._steady_step, place)
        return seen is None or seen.intact(call)

    @property
    def nbytes(self) -> int:
        """Memory that these caches hold: of buffers all of it, of others their rows."""
        total, _, buffers = self._memory()
        return total + buffers

    def _memory(self) -> tuple[int, int, int]:
        """Of caches that hold no more than their rows: all, and a row of each; that of buffers."""
        total, each, buffers = 0, 0, []
        for store, made in self._made.items():
            if not made.cached or self._uses[store].counted or self._uses[store].twin:
                continue
            layer, use = self.stores.layers[store], self._uses[store]
            if layer.capacity and (use.latents or len(use.found) == 2):
                buffers += use.found or use.latents
                continue
            row = layer.num_kv_heads * layer.held_dim * made.rows[0].element_size()
            row = layer.latent_bytes or row
            each += row
            total += row * sum(runs.count(one) for one in made.entry.after.held)
        return total, each, nbytes_of(buffers)
