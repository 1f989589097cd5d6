"""Rows that no known cache handed over: what a model's own code keeps, told by what it attends to.

Each call is looked at while its forward runs, before the model may write over what it has just
read: new rows are copied, of the others only digests are kept. Knows no cache class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvtrace.record.cache.repeats import KEPT, Repeats
from kvtrace.record.cache.stores import Stores
from kvtrace.record.capture.calls import AttentionCall
from kvtrace.record.flow.abreast import Copied, copied, steps
from kvtrace.record.flow.rows import RowFollower, RowStep
from kvtrace.record.flow.texts import Given
from kvtrace.record.match import Digests, digest
from kvtrace.record.version import version

_POSITION = re.compile(r"(^|_)(pos|position|positions|start|offset|past_len|past_length)(_|s?$)")

ROOM = 1 << 26
"""Bytes of keys and values of a forward that are looked at after it, of all its sites."""
CALM = 2
"""Forwards that a site's rows must have outlived unchanged before they are looked at after one."""
NEVER = -1

WRITTEN_OVER = "rows of step {} were written over before they could be looked at"


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One call, as far as it must be known after the model has gone on.

    Attributes:
        store: Its cache layer.
        step: What became of its rows.
        keys, values: Rows it wrote, [sequences, kv_heads, rows, dim].
        versions: Changes in place of its keys and values when it was seen; -1: not counted.
        digests: Of its keys and values, [sequences, seq].
    """

    store: int
    step: RowStep
    keys: Tensor
    values: Tensor
    versions: tuple[int, int]
    digests: tuple[Digests, Digests]

    def intact(self, call: AttentionCall) -> bool:
        """Whether what the call was given is still what it was when it was seen."""
        now = version(call.keys), version(call.values)
        if now == self.versions and -1 not in now:
            return True
        seq, slots = self.step.cells.shape[1], self.step.slots
        pairs = zip((call.keys, call.values), self.digests, strict=True)
        return all(
            bool((digest(rows[:, :, :seq])[:, slots] == before[:, slots]).all())
            for rows, before in pairs
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A call that is looked at when the forward is over, for what was copied of its rows.

    Attributes:
        key: (module, number) of the call.
        memory: Where its rows lie.
        store: Its cache layer.
        copied: What was copied.
        versions: Changes in place of its keys and values when it was seen.
    """

    key: tuple[str, int]
    memory: tuple[object, ...]
    store: int
    copied: Copied
    versions: tuple[int, int]


class Derived:
    """Follows the rows of every site that reads from no known cache.

    Attributes:
        number: Of the step that runs.
    """

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._followers: dict[int, RowFollower] = {}
        self._seen: dict[tuple[str, int], Seen] = {}
        self._waiting: list[_Waiting] = []
        self._waiting_at: set[tuple[object, ...]] = set()
        self._waiting_bytes = 0
        self._calm: dict[int, int] = {}
        self._shown: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._memory: dict[tuple[object, ...], Seen] = {}
        self._stores_of: dict[tuple[str, int], int] = {}
        self._arguments: Mapping[str, object] = {}
        self._tokens: Tensor | None = None
        self._before: Tensor | None = None
        self.number = 0
        self._resumed_told: bool | None = None
        self._told: tuple[bool, int | None, tuple[int, ...] | None] | None = None
        self._rows: int | None = None
        self._handed, self._repeats = Repeats(), False

    def begin(self, tokens: Tensor | None, arguments: Mapping[str, object], number: int) -> None:
        """A forward begins.

        Args:
            tokens: Ids in, [sequences, new].
            arguments: What the model is called with.
            number: Of the step it will be.
        """
        self._clear()
        self._tokens, self._arguments, self.number = tokens, arguments, number
        self._told = self._resumed_told = self._rows = None
        self._repeats = self._handed.same(arguments, tokens, self._before)

    def see(self, call: AttentionCall) -> AttentionCall:
        """Look at a call while the model runs; the call with nothing left that may be changed."""
        self._shown[call.module, call.call] = call.keys, call.values
        if not self._waits(call):
            self._seen[call.module, call.call] = self._follow(call, None)
        return replace(call, queries=call.queries.clone(), output=call.output.clone())

    def see_all(self, calls: Sequence[AttentionCall]) -> None:
        """Look at the calls of a forward that is over."""
        for call in calls:
            self._shown[call.module, call.call] = call.keys, call.values
            if not self._waits(call, over=True):
                self._seen[call.module, call.call] = self._follow(call, None)

    def of(self, call: AttentionCall, limit: int | None = None) -> Seen:
        """What is known of a call; it is looked at now if it was not before.

        Args:
            call: It.
            limit: Rows that are written, where a buffer has more.
        """
        key = (call.module, call.call)
        self._settle()
        found = self._seen.get(key)
        if found is None:
            found = self._seen[key] = self._follow(call, limit)
        return found

    @property
    def grown(self) -> int:
        """Tokens that this forward has more than the one before, which it repeats; else 0."""
        return self._longer if self._known[0] else 0

    def over(self) -> None:
        """A forward is over; its tokens are kept only where rows were followed."""
        self._settle()
        self._calm_down()
        if self._seen:
            self._known  # noqa: B018 - compared with the tokens before, while those are known
            tokens = self._tokens
            self._before = None if tokens is None else tokens.detach().clone()
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

    def _clear(self) -> None:
        """Forget the calls of a forward."""
        self._shown.clear()
        self._seen.clear()
        self._memory.clear()
        self._waiting.clear()
        self._waiting_at.clear()
        self._waiting_bytes = 0

    # -- one call --------------------------------------------------------------------------

    @torch.no_grad()
    def _follow(self, call: AttentionCall, limit: int | None) -> Seen:
        memory = _memory(call)
        if memory in self._waiting_at:
            self._settle()
        same = self._memory.get(memory)
        if same is not None and same.intact(call):
            return same
        seen = self._memory[memory] = self._followed(call, limit)
        return seen

    def _followed(self, call: AttentionCall, limit: int | None) -> Seen:
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
        versions = version(call.keys), version(call.values)
        rows = step.fresh or (_written(keys, step), _written(values, step))
        return Seen(store, step, *rows, versions, follower.digests)

    def _given(
        self, call: AttentionCall, keys: Tensor, values: Tensor, visible: Tensor | None
    ) -> Given:
        """What a site was given, and what is known of the step."""
        if self._rows is None and call.kind == "self":
            self._rows = call.queries.shape[2]
        grown, start, pads = self._known
        new = call.queries.shape[2]
        if call.kind == "cross":  # its rows are of another text, in which no token is new
            new, start = 0, None
        number, resumed = self.number, self._resumed
        tokens = 0
        if call.kind == "self" and self._tokens is not None:
            tokens = self._in_rows(self._tokens).shape[-1]
        again = self._repeats and call.kind == "self"
        return Given(keys, values, new, visible, grown, start, pads, number, resumed, tokens, again)

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
        memory = _memory(call)
        taken = memory in self._memory or memory in self._waiting_at
        if taken or not follower.may_have_grown(given):
            return False
        versions = version(keys), version(values)
        if -1 in versions:
            return False
        one = copied(follower, given, over=over)
        self._waiting.append(_Waiting((call.module, call.call), memory, store, one, versions))
        self._waiting_at.add(memory)
        self._waiting_bytes += nbytes
        return True

    @torch.no_grad()
    def _settle(self) -> None:
        """Look at the rows that were copied."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        self._waiting_at.clear()
        found = steps([one.copied for one in waiting])
        for one, step in zip(waiting, found, strict=True):
            given = one.copied.given
            rows = step.fresh or (_written(given.keys, step), _written(given.values, step))
            if step.fresh is None and one.versions != (
                version(given.keys),
                version(given.values),
            ):
                self._stores.say(one.store, remark=WRITTEN_OVER.format(self.number))
            digests = one.copied.follower.digests
            seen = Seen(one.store, step, *rows, one.versions, digests)
            self._seen[one.key] = self._memory[one.memory] = seen

    @property
    def _resumed(self) -> bool:
        """Whether an argument named for it holds what an earlier step left there."""
        if self._resumed_told is None:
            self._resumed_told = any(
                KEPT.search(name) and not isinstance(value, bool | int | str) and _filled(value)
                for name, value in self._arguments.items()
            )
        return self._resumed_told

    def _in_rows(self, tokens: Tensor) -> Tensor:
        """Ids as [sequences, new], also of a model that takes them the other way around."""
        now = self._tokens
        turned = now is not None and now.dim() == 2 and now.shape[0] == self._rows != now.shape[1]
        return tokens.t() if turned and tokens.dim() == 2 else tokens

    @property
    def _longer(self) -> int:
        """Tokens more than in the forward before."""
        if self._tokens is None or self._before is None:
            return 0
        return self._in_rows(self._tokens).shape[-1] - self._in_rows(self._before).shape[-1]

    @property
    def _known(self) -> tuple[bool, int | None, tuple[int, ...] | None]:
        """(goes on with the tokens before, position of the first token, padding) of the forward."""
        if self._told is None:
            new = 0 if self._tokens is None else self._tokens.shape[-1]
            start = _start(self._arguments, self._tokens, new)
            extends = False
            if self._tokens is not None and self._before is not None:
                tokens = self._in_rows(self._tokens)
                new, extends = tokens.shape[-1], _extends(tokens, self._in_rows(self._before))
            # a model may be given all tokens and take the new ones itself: nothing is repeated
            if extends and self._rows == self._longer:
                extends, start = False, new - self._rows if start is None else start
            self._told = (extends, start, _padding(self._arguments))
        return self._told


def _memory(call: AttentionCall) -> tuple[object, ...]:
    """Where the rows of a call lie: two calls with the same share them."""
    keys, values = call.keys, call.values
    return (
        (keys.data_ptr(), keys.shape, keys.stride()),
        (values.data_ptr(), values.shape, values.stride()),
        call.queries.shape[2],
    )


def _filled(value: object, depth: int = 3) -> bool:
    """Whether a container holds tensors; anything else that is neither tensor nor None does."""
    if isinstance(value, Mapping):
        return _filled(list(value.values()), depth)
    if isinstance(value, list | tuple):
        return any(isinstance(one, Tensor) or (depth and _filled(one, depth - 1)) for one in value)
    return value is not None and not isinstance(value, Tensor)


def _written(rows: Tensor, step: RowStep) -> Tensor:
    """A copy of the rows that a step wrote."""
    rows, written = rows.detach(), step.written
    if not written.size:
        return rows[:, :, :0]
    first, count = int(written[0, 0]), written.shape[1]
    if (written == range(first, first + count)).all():
        return rows[:, :, first : first + count].clone()
    return torch.stack([rows[b][:, slots.tolist()] for b, slots in enumerate(written)])


def _extends(tokens: Tensor, before: Tensor) -> bool:
    """Whether every sequence begins with what it was before, and goes on."""
    if tokens.dim() != 2 or before.dim() != 2:
        return False
    count = before.shape[1]
    longer = tokens.shape[0] == before.shape[0] and tokens.shape[1] > count > 0
    return longer and torch.equal(tokens[:, :count].to(before.device), before)


def _start(arguments: Mapping[str, object], tokens: Tensor | None, new: int) -> int | None:
    """Position of the first token as an argument says it; None where none does."""
    mask = arguments.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and tokens is not None:
        whole = mask.shape[0] == tokens.shape[0] and not mask.is_floating_point()
        if whole and mask.shape[1] > new:
            return int(mask.shape[1]) - new
    for name, value in arguments.items():
        if value is tokens or not _POSITION.search(name):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        if isinstance(value, Tensor) and not value.is_floating_point() and value.numel():
            fits = value.dim() == 0 or value.shape[-1] in (1, new)
            first = int(value.flatten()[0]) if fits else -1
            if first >= 0:
                return first
    return None


def _padding(arguments: Mapping[str, object]) -> tuple[int, ...] | None:
    """Hidden tokens at the left, per sequence, as an attention mask says it."""
    mask = arguments.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    shown = mask != 0
    return tuple(int(n) for n in torch.where(shown.any(1), shown.int().argmax(1), 0).tolist())
