"""Rows that no known cache handed over: what a model's own code keeps, told by what it attends to.

Each call is looked at while its forward runs, before the model may write over what it has just
read: new rows are copied, of the others only digests are kept. Knows no cache class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.cache.own import arguments
from kvtrace.record.cache.own.fed import Fed
from kvtrace.record.cache.own.seen_call import SeenCall, Waiting, memory_of, seen_of, written_rows
from kvtrace.record.cache.own.steady import SteadySites, SteadyStep
from kvtrace.record.cache.stores import Stores
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.flow.rows import slots as where
from kvtrace.record.flow.rows.abreast import Copied, copied, steps
from kvtrace.record.flow.rows.follower import RowFollower
from kvtrace.record.flow.rows.row_step import RowStep
from kvtrace.record.flow.rows.texts import GivenRows
from kvtrace.record.version import version

ROOM = 1 << 26
"""Bytes of keys and values of a forward that are looked at after it, of all its sites."""
CALM = 2
"""Forwards that a site's rows must have outlived unchanged before they are looked at after one."""
NEVER = -1

WRITTEN_OVER = "rows of step {} were written over before they could be looked at"


class Derived:
    """Follows the rows of every site that reads from no known cache.

    Attributes:
        fed: What the forward that runs was given.
        number: Of the step that runs.
    """

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._followers: dict[int, RowFollower] = {}
        self._seen: dict[tuple[str, int], SeenCall] = {}
        self._waiting: list[Waiting] = []
        self._waiting_at: set[tuple[object, ...]] = set()
        self._waiting_bytes = 0
        self._calm: dict[int, int] = {}
        self._shown: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._memory: dict[tuple[object, ...], SeenCall] = {}
        self._stores_of: dict[tuple[str, int], int] = {}
        self._read: set[int] = set()
        self.fed = Fed()
        self.number = 0
        self._sites: SteadySites | None = None
        self._in_line = False

    def begin(self, tokens: Tensor | None, arguments: Mapping[str, object], number: int) -> None:
        """A forward begins.

        Args:
            tokens: Ids in, [sequences, new].
            arguments: What the model is called with.
            number: Of the step it will be.
        """
        self._clear()
        self.number = number
        self.fed.begin(tokens, arguments)

    def see(self, call: AttentionCall) -> AttentionCall:
        """Look at a call while the model runs; the call with nothing left that may be changed."""
        self._halt()
        self._shown[call.module, call.call] = call.keys, call.values
        if not self._waits(call):
            self._seen[call.module, call.call] = self._follow(call, None)
        return replace(call, queries=call.queries.clone(), output=call.output.clone())

    def see_all(self, calls: Sequence[AttentionCall]) -> None:
        """Look at the calls of a forward that is over."""
        if self._as_before(calls):
            return
        for call in calls:
            self._shown[call.module, call.call] = call.keys, call.values
            if not self._waits(call, over=True):
                self._seen[call.module, call.call] = self._follow(call, None)
        self._in_line = 0 < len(self._waiting) == len(calls)

    def of(self, call: AttentionCall, limit: int | None = None) -> SeenCall:
        """What is known of a call; it is looked at now if it was not before.

        Args:
            call: It.
            limit: Rows that are written, where a buffer has more.
        """
        key = (call.module, call.call)
        self._settle()
        found = self._seen.get(key) or self._steady_step(call)
        if found is None:
            found = self._seen[key] = self._follow(call, limit)
        return found

    def steady_step(self, calls: Sequence[AttentionCall]) -> SteadyStep | None:
        """What calls did, if they are a whole step like the one before."""
        self._settle()
        done = None if self._sites is None else self._sites.done
        if done is None or len(done.calls) != len(calls):
            return None
        same = all(one is other for one, other in zip(done.calls, calls, strict=True))
        return done if same else None

    def over(self) -> None:
        """A forward is over; its tokens are kept only where rows were followed."""
        self._settle()
        self._calm_down()
        if self._seen or (self._sites is not None and self._sites.done is not None):
            self.fed.over()
        self._clear()

    def _calm_down(self) -> None:
        """Count, for each site, the forwards that its rows outlived unchanged, until they do not.

        One that wrote to them once is looked at while the model runs from then on.
        """
        for key, (keys, values) in self._shown.items():
            seen = self._seen[key]
            calm = (version(keys), version(values)) == seen.versions
            before = self._calm.get(seen.store, 0)
            self._calm[seen.store] = before + 1 if calm and before >= 0 else NEVER
        done = None if self._sites is None else self._sites.done
        restless = [] if done is None else done.written_over()
        self._calm.update(dict.fromkeys(restless, NEVER))
        if restless:
            self._sites = None

    def _clear(self) -> None:
        """Forget the calls of a forward."""
        if self._sites is not None:
            self._sites.rest()
        self._in_line = False
        self._shown.clear()
        self._seen.clear()
        self._memory.clear()
        self._waiting.clear()
        self._waiting_at.clear()
        self._waiting_bytes = 0

    # -- one call --------------------------------------------------------------------------

    @torch.no_grad()
    def _follow(self, call: AttentionCall, limit: int | None) -> SeenCall:
        memory = memory_of(call)
        if memory in self._waiting_at:
            self._settle()
        same = self._memory.get(memory)
        if same is not None and same.intact(call):
            return same
        seen = self._memory[memory] = self._followed(call, limit)
        return seen

    def _followed(self, call: AttentionCall, limit: int | None) -> SeenCall:
        store = self._stores.of_call(call)
        keys, values, visible = call.keys, call.values, call.visible
        if limit is not None and limit < keys.shape[2]:
            keys, values = keys[:, :, :limit], values[:, :, :limit]
            visible = None if visible is None else visible[..., :limit]
        follower = self._followers.setdefault(store, RowFollower())
        before = self._stores_of.get((call.module, call.call), store)
        if before != store:
            follower.succeed(self._followers[before])
        self._stores_of[call.module, call.call] = store
        step = follower.step(self._given(call, keys, values, visible))
        self._has_read(store, step)
        anew = step.parent is not None and not step.computed and step.rows >= call.queries.shape[2]
        if anew and call.kind == "self" and self.fed.grown:
            self.fed.stands_behind()
        versions = version(call.keys), version(call.values)
        rows = step.fresh or (written_rows(keys, step), written_rows(values, step))
        return SeenCall(store, step, *rows, versions, follower.digests)

    def _has_read(self, store: int, step: RowStep) -> None:
        """Keep in mind that rows of a cache were read, where they were."""
        if step.parent is not None and not step.computed:
            self._read.add(store)

    def _given(
        self, call: AttentionCall, keys: Tensor, values: Tensor, visible: Tensor | None
    ) -> GivenRows:
        """What a site was given, and what is known of the step."""
        fed, own = self.fed, call.kind == "self"
        if fed.rows is None and own:
            fed.rows = call.queries.shape[2]
        grown, start, pads = fed.known
        new = call.queries.shape[2]
        if grown and self._stores_of.get((call.module, call.call)) in self._read:
            # what goes on with a cache reads it: else this is another text, without it
            grown = int(where.seen(visible, keys.shape[2]).sum()) > new
        if call.kind == "cross":  # its rows are of another text, in which no token is new
            new, start = 0, None
        tokens = 0
        if own and fed.tokens is not None:
            tokens = fed.in_rows(fed.tokens).shape[-1]
        apart = None if call.kind == "cross" else arguments.held(fed.arguments, keys.shape[0])
        again = fed.repeats and own
        told = grown, start, pads, self.number, fed.resumed, tokens, again, apart
        return GivenRows(keys, values, new, visible, *told)

    # -- calls of a step that most likely only added rows ----------------------------------

    @torch.no_grad()
    def _waits(self, call: AttentionCall, *, over: bool = False) -> bool:
        """Copy what must be compared of a call's rows; all calls are looked at after the forward.

        Only where sizes say that rows were added and no more, and only of a site whose rows were
        never written to between its attention and the end of the forward.
        """
        keys, values = call.keys, call.values
        store = self._stores_of.get((call.module, call.call))
        if store is None or self._calm.get(store, 0) < CALM:
            return False
        if keys.shape != values.shape or keys.dtype != values.dtype:
            return False
        nbytes = 2 * keys.nbytes
        if self._waiting_bytes + nbytes > ROOM or self._stores.of_call(call) != store:
            return False
        follower, given = self._followers[store], self._given(call, keys, values, call.visible)
        memory = memory_of(call)
        taken = memory in self._memory or memory in self._waiting_at
        if taken or not follower.may_have_grown(given):
            return False
        versions = version(keys), version(values)
        if -1 in versions:
            return False
        one = copied(follower, given, over=over)
        self._waiting.append(Waiting((call.module, call.call), memory, store, one, versions))
        self._waiting_at.add(memory)
        self._waiting_bytes += nbytes
        return True

    @torch.no_grad()
    def _settle(self) -> None:
        """Look at the rows that were copied."""
        sites = self._sites
        if sites is not None and sites.calls and sites.done is None:
            part = sites.look(self.number)
            if sites.done is None:
                self._waiting, self._sites = self._fallen_out(sites, part), None
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        self._waiting_at.clear()
        found = steps([one.copied for one in waiting])
        for one, step in zip(waiting, found, strict=True):
            given = one.copied.given
            rows = step.fresh or (written_rows(given.keys, step), written_rows(given.values, step))
            if step.fresh is None and one.versions != (
                version(given.keys),
                version(given.values),
            ):
                self._stores.say(one.store, remark=WRITTEN_OVER.format(self.number))
            digests = one.copied.follower.digests
            self._has_read(one.store, step)
            seen = SeenCall(one.store, step, *rows, one.versions, digests)
            self._seen[one.key] = self._memory[one.memory] = seen
        if self._in_line:
            line = [one.key for one in waiting], [one.store for one in waiting]
            self._sites = SteadySites.of(*line, [one.copied for one in waiting], found)

    # -- steps like the one before -----------------------------------------------------------

    def _as_before(self, calls: Sequence[AttentionCall]) -> bool:
        """Whether the calls of a forward that is over are, by their sizes, as in the one before."""
        sites = self._sites
        if sites is None or not calls:
            return False
        if self.fed.rows is None and calls[0].kind == "self":
            self.fed.rows = calls[0].queries.shape[2]
        grown, start, _ = self.fed.known
        nbytes = 2 * len(calls) * calls[0].keys.nbytes
        if grown or nbytes > ROOM or not sites.begin(calls, start):
            self._sites = None
        return self._sites is not None

    def _fallen_out(self, sites: SteadySites, part: int | None) -> list[Waiting]:
        """The calls of a step that was not like the one before, each by itself."""
        found = []
        for place, (call, store) in enumerate(zip(sites.calls, sites.stores, strict=True)):
            given = self._given(call, call.keys, call.values, call.visible)
            looked = sites.looked(place, part)
            one = Copied(sites.followers[place], given, part, *looked)
            key, versions = sites.keys[place], sites.versions[place]
            found.append(Waiting(key, memory_of(call), store, one, versions))
        return found

    def _steady_step(self, call: AttentionCall) -> SeenCall | None:
        """What is known of a call of a step like the one before."""
        done = None if self._sites is None else self._sites.done
        place = None if done is None else done.place(call)
        if done is None or place is None:
            return None
        seen = seen_of(done, place)
        self._seen[call.module, call.call] = self._memory[memory_of(call)] = seen
        return seen

    def _halt(self) -> None:
        """More calls follow those of a forward that seemed to be over."""
        sites = self._sites
        if sites is not None and sites.calls:
            self._settle()
            for call in sites.calls if sites.done is not None else ():
                self._steady_step(call)
