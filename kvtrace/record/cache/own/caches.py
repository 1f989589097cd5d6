"""Caches of people's own: what a step did to rows that no known cache handed over.

A site is taken to keep its rows once a step read rows that it did not compute, or, until a step
could have, once something that lasts is found to hold them. What turns out later is said later:
kind, limits and place of a cache layer are filled in as they become known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.cache import runs
from kvtrace.record.cache.books import Book, Entry
from kvtrace.record.cache.own import holders
from kvtrace.record.cache.own.call_effect import (
    CallEffect,
    Line,
    attended_runs,
    rows_for_none,
    told_places,
)
from kvtrace.record.cache.own.derived import Derived
from kvtrace.record.cache.own.holders import FoundHolder, Holder
from kvtrace.record.cache.own.seen_call import SeenCall, seen_of
from kvtrace.record.cache.own.site_use import SiteUse, Slots
from kvtrace.record.cache.own.steady import SteadyStep
from kvtrace.record.cache.own.unrotated import find_turned
from kvtrace.record.cache.stores import Stores
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import CacheUpdate, Forward
from kvtrace.record.flow.rows.row_step import RowStep
from kvtrace.record.flow.rows.slots import NOWHERE, UNWRITTEN, Numbers
from kvtrace.record.flow.rows.standing import slots_of_tokens
from kvtrace.record.match import holds
from kvtrace.trace import CacheEvent
from kvtrace.trace.step import Runs

ROTATED = "keys are kept unrotated and rotated anew at each step; the tokens' rows stay the same"
UNROTATED = "keys are kept before RoPE"


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
    _holders: list[Holder] | None = None
    _held_last: dict[str, str] = field(default_factory=dict)
    _line: Line | None = None
    _steady_step: SteadyStep | None = None

    def __post_init__(self) -> None:
        self.derived = Derived(self.stores)

    def begin(self) -> None:
        """A forward is entered."""
        self._made, self._seen, self._memo, self._holders = {}, {}, {}, None
        self._grown, self._steady_step = {}, None

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
        if origin is None and use.goes_on(seen.step):
            entry, rows = self._entry(seen, None, None, cached=True), (seen.keys, seen.values)
            return self._note(
                call, CallEffect(seen.store, entry, rows, None, cached=True, seen=seen)
            )
        if use.left is not None:
            seen = replace(seen, step=replace(seen.step, before=len(use.left)))
        if origin is None:
            self._learn(use, call, seen, forward)
            others = slots_of_tokens(seen.step.positions[0], seen.step.slots)
            use.beside = others is not None and (use.beside or use.left == others)
            use.left = others if use.beside else use.left
        cached = origin is None and use.cached
        entry = self._entry(seen, origin, use.left if cached else None, cached=cached)
        slots = None if seen.step.whole else seen.step.slots
        made = CallEffect(seen.store, entry, (seen.keys, seen.values), slots, cached, seen)
        self._say(use, made, derived=origin is not None)
        return self._note(call, made)

    def steady_step(self, calls: Sequence[AttentionCall]) -> tuple[Entry, SteadyStep, int] | None:
        """Enter all calls of a forward at once, if each only went on as in the step before.

        Returns:
            What happened to each cache layer, what the calls did, and memory of the caches.
        """
        line, found = self._line, self.derived.steady_step(calls)
        if line is None or found is None or found.sites.stores != line.stores:
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
            self._line = Line(tuple(self._made), row_bytes, buffer_bytes)
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

    # -- what is learnt of a cache layer ---------------------------------------------------

    def _learn(self, use: SiteUse, call: AttentionCall, seen: SeenCall, forward: Forward) -> None:
        """Whether its rows are kept, and by what."""
        use.left, use.room = None, 0
        step, self_attention = seen.step, call.kind == "self"
        if self.derived.grown:
            use.repeated = True
        elif step.parent is not None and not step.computed and self_attention:
            use.read = True
        if use.settled or call.kind == "encoder" or call.level == 1:
            return
        use.looks += 1
        if self._holders is None:
            self._holders = holders.holders(forward.model, forward.arguments, forward.result)
        old = np.flatnonzero((step.origin[0] != NOWHERE) & (step.cells[0] != UNWRITTEN))
        new = step.written[0] if step.rows else old
        for name, rows in (("keys", call.keys), ("values", call.values)):
            self._learn_holder(use, name, rows, old, new)
        use.counted = use.counted or bool(
            holders.held_by(forward.updates).intersection(one.storage for one in use.found)
        )
        if use.keys is None and use.values is not None and use.turned is None:
            use.turned = find_turned(call.keys, old[::-1].tolist(), self._holders)

    def _learn_holder(
        self, use: SiteUse, name: str, rows: Tensor, old: Numbers, new: Numbers
    ) -> None:
        """What holds the keys, or the values: rows of before first, those of this step else."""
        among = holders.going_on(self._holders or [], self._held_last.get(name))
        lasting = [one for one in among if one.rank]
        # there the rows of the step before are: too few by those of this
        found = holders.find(rows, old[::-1].tolist(), lasting, which=False) if len(old) else None
        if found is None:
            found = holders.find(rows, new[::-1].tolist(), among)
            if found is None:
                return
        use.room, self._held_last[name] = max(use.room, found.slots), found.name
        earlier: FoundHolder | None = getattr(use, name)
        if earlier is not None and found.rank < earlier.rank:
            return
        setattr(use, name, found)
        kept = found.kept if use.left is None else use.left  # values alone may be another token's
        use.left = kept and tuple(n for n in kept if n in (found.kept or kept))

    def _say(self, use: SiteUse, made: CallEffect, *, derived: bool) -> None:
        """Fill in what is known of the cache layer now."""
        step, store = made.seen.step, made.store
        if derived:
            self.stores.say(store, kind="derived")
            return
        if not made.cached:
            self.stores.say(store, kind="uncached")
            return
        rows = len(step.slots)
        layer = self.stores.layers[store]
        room = use.room if step.whole else max(use.room, step.cells.shape[1])
        part = use.left is not None and not use.beside
        capacity = layer.capacity or (room if room > rows or part else None)
        if capacity is not None and capacity < rows:
            capacity = None  # one row does not tell along which axis there is room for more
        window = layer.window
        if step.gone and not step.computed and rows == step.before and not step.cropped:
            window = window or rows
        kind = "sliding" if window else "static" if capacity else "dynamic"
        remark = layer.remark
        if step.rotated and step.again > 1:
            remark = ROTATED
        elif use.turned is not None and use.keys is None and not remark.startswith(ROTATED):
            remark = f"{UNROTATED}, in {use.turned.told(grows=capacity is None)}"
        grows = capacity is None
        if use.looks <= 1 and not layer.shared_dim and holds(*made.rows):
            self.stores.say(store, shared_dim=layer.value_dim)
        where = ", ".join(dict.fromkeys(one.told(grows=grows) for one in use.found))
        if len(use.found) == 1:
            where = f"{'keys' if use.keys else 'values'}: {where}"
        self.stores.say(
            store, kind=kind, capacity=capacity, window=window, where=where, remark=remark
        )

    # -- the whole forward -----------------------------------------------------------------

    @property
    def parent(self) -> int | None:
        """The step whose rows this one goes on with: not that whose encoder's rows it replaced.

        A first layer has equal rows for all texts that begin alike: most layers know best, those
        of the text before those of an encoder.
        """
        steps = {store: one.seen.step for store, one in self._made.items()}
        kept = {s: one for s, one in steps.items() if s in self._of_text or not one.rows} or steps
        found = {s: one.parent for s, one in kept.items() if one.parent is not None}
        every = Counter(found.values())
        text = Counter(parent for store, parent in found.items() if store in self._of_text)
        return max(every, key=lambda parent: (text[parent], every[parent], parent), default=None)

    @property
    def events(self) -> tuple[CacheEvent, ...]:
        """What happened to the caches between the step before and this one."""
        if all(one.seen.step.fresh is not None for one in self._made.values()):
            return ()
        cached = {store: one.seen.step for store, one in self._made.items() if one.cached}
        out = []
        cut = {store: step for store, step in cached.items() if self._cropped(step)}
        if cut:
            before = tuple(step.before for step in cut.values())
            after = tuple(step.before - self._cropped(step) for step in cut.values())
            out.append(CacheEvent("crop", tuple(cut), before, after))
        # an encoder's rows are the same for all beams of a text, and those of a first layer for
        # all that read the same token: the deepest of as many layers knows best
        text = {store: step for store, step in cached.items() if store in self._of_text} or cached
        orders = Counter(
            tuple(int(n) for n in step.taken) for step in reversed(text.values()) if step.before
        )
        if orders:
            same = tuple(range(len(next(iter(orders)))))
            order = max(orders, key=lambda one: (orders[one], one == same))
            layers = tuple(
                store for store, step in cached.items() if tuple(step.taken.tolist()) == order
            )
            if order != same:
                sizes = tuple(cached[store].before for store in layers)
                out.append(CacheEvent("reorder", layers, sizes, sizes, order))
        return tuple(out)

    @staticmethod
    def _cropped(step: RowStep) -> int:
        """Rows that were taken off the end before the step."""
        return 0 if step.parent is None or step.computed else step.cropped

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
            if not made.cached or self._uses[store].counted:
                continue
            layer, found = self.stores.layers[store], self._uses[store].found
            if layer.capacity and len(found) == 2:
                buffers += found
                continue
            row = layer.num_kv_heads * layer.held_dim * made.rows[0].element_size()
            each += row
            total += row * sum(runs.count(one) for one in made.entry.after.held)
        return total, each, holders.nbytes(buffers)
