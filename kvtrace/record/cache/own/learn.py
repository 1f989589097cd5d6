"""What is learnt of a site that reads rows of its own: whether they are kept, where, and how.

A site is taken to keep its rows once a step read rows that it did not compute, or, until a step
could have, once something that lasts is found to hold them. What turns out later is said later:
kind, limits and place of a cache layer are filled in as they become known.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from kvtrace.record.cache.own.call_effect import CallEffect
from kvtrace.record.cache.own.find_holder import FoundHolder, find, held_by
from kvtrace.record.cache.own.find_latent import find_latent, layer_with_weights
from kvtrace.record.cache.own.holders import Holder, going_on, holders
from kvtrace.record.cache.own.seen_call import SeenCall
from kvtrace.record.cache.own.site_use import LOOKS, SiteUse
from kvtrace.record.cache.own.twins import Twins
from kvtrace.record.cache.own.unrotated import find_turned
from kvtrace.record.cache.stores import Stores
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Forward
from kvtrace.record.flow.rows.row_step import RowStep
from kvtrace.record.flow.rows.slots import NOWHERE, UNWRITTEN, Numbers
from kvtrace.record.match import holds

ROTATED = "keys are kept unrotated and rotated anew at each step; the tokens' rows stay the same"
MADE_ANEW = "K and V are made anew from these rows in every step"
UNROTATED = "keys are kept before RoPE"


@dataclass(slots=True)
class Learning:
    """Looks for what holds rows.

    Attributes:
        holders: All that may hold rows in the forward that runs; None: not looked for yet.
        twins: Which of its cache layers may be copies of others.
    """

    holders: list[Holder] | None = None
    twins: Twins = field(default_factory=Twins)
    _held_last: dict[str, str] = field(default_factory=dict)

    def begin(self) -> None:
        """A forward is entered."""
        self.holders = None
        self.twins.begin()

    def learn(
        self, use: SiteUse, call: AttentionCall, seen: SeenCall, forward: Forward, *, again: bool
    ) -> None:
        """Whether the rows of a site are kept, and by what.

        Args:
            use: What is known of the site.
            call: Its call.
            seen: All that is known of the call.
            forward: In which it ran.
            again: The forward computes the tokens of the one before again, and more.
        """
        use.left, use.room = None, 0
        step, self_attention = seen.step, call.kind == "self"
        if again:
            use.repeated = True
        elif step.parent is not None and not step.computed and self_attention:
            if not use.read:  # texts without a cache told nothing of where it is
                use.looks = min(use.looks, LOOKS - 2)
            use.read = True
        elif step.parent is None and use.repeated and not use.read:
            use.looks, use.repeated = min(use.looks, LOOKS - 1), False  # this text may have one
        if call.kind == "encoder" or call.level == 1:
            return
        if use.settled:
            if use.read and self_attention and (step.parent is None or step.computed):
                use.left = None if self._is_held(use, call, seen, forward) else ()
            return
        use.looks += 1
        self._around(forward)
        old = np.flatnonzero((step.origin[0] != NOWHERE) & (step.cells[0] != UNWRITTEN))
        new = step.written[0] if step.rows else old
        for name, rows in (("keys", call.keys), ("values", call.values)):
            self._learn_holder(use, name, rows, old, new)
        use.counted = use.counted or bool(
            held_by(forward.updates).intersection(one.storage for one in use.found)
        )
        self._learn_made_anew(use, call, old, forward)
        use.twin = self.twins.is_one(use, seen, call.values, self._around(forward))

    def _learn_made_anew(
        self, use: SiteUse, call: AttentionCall, old: Numbers, forward: Forward
    ) -> None:
        """What holds that of which the rows are made, where they are not kept as they are."""
        around = self._around(forward)
        if use.keys is None and use.values is not None and use.turned is None:
            use.turned = find_turned(call.keys, old[::-1].tolist(), around)
        if use.read and not use.found and not use.latents:
            lasting = [one for one in around if one.rank]
            weights = layer_with_weights(forward.model, call.module)
            use.latents = find_latent(call.keys, call.values, old.tolist(), lasting, weights)
            use.room = max([one.slots for one in use.latents], default=use.room)

    def _is_held(self, use: SiteUse, call: AttentionCall, seen: SeenCall, forward: Forward) -> bool:
        """Whether the rows of a text that begins are kept, too: it may be one without the cache."""
        around = self._around(forward)
        rows = [call.keys] * (use.keys is not None) + [call.values] * (use.values is not None)
        slots = seen.step.slots[::-1].tolist()
        found = (find(one, slots, around, which=False) for one in rows)
        return not rows or any(one is not None for one in found)

    def _around(self, forward: Forward) -> list[Holder]:
        """All that may hold rows, looked for once in a forward."""
        if self.holders is None:
            self.holders = holders(forward.model, forward.arguments, forward.result)
        return self.holders

    def _learn_holder(
        self, use: SiteUse, name: str, rows: Tensor, old: Numbers, new: Numbers
    ) -> None:
        """What holds the keys, or the values: rows of before first, those of this step else."""
        among = going_on(self.holders or [], self._held_last.get(name))
        lasting = [one for one in among if one.rank]
        # there the rows of the step before are: too few by those of this
        found = find(rows, old[::-1].tolist(), lasting, which=False) if len(old) else None
        if found is None:
            found = find(rows, new[::-1].tolist(), among)
            if found is None:
                return
        use.room, self._held_last[name] = max(use.room, found.slots), found.name
        earlier: FoundHolder | None = getattr(use, name)
        if earlier is not None and found.rank < earlier.rank:
            return
        setattr(use, name, found)
        kept = found.kept if use.left is None else use.left  # values alone may be another token's
        use.left = kept and tuple(n for n in kept if n in (found.kept or kept))


def say(
    stores: Stores, use: SiteUse, made: CallEffect, visible: Tensor | None, *, derived: bool
) -> None:
    """Fill in what is known of a cache layer now.

    Args:
        stores: Where it is told.
        use: What is known of the site that reads it.
        made: What the call did to it.
        visible: What its queries see, as the call says it.
        derived: Its rows are made of what another one holds.
    """
    step, store = made.seen.step, made.store
    if derived:
        stores.say(store, kind="derived")
        return
    if not made.cached:
        stores.say(store, kind="uncached")
        return
    rows = len(step.slots)
    layer = stores.layers[store]
    room = use.room if step.whole else max(use.room, step.cells.shape[1])
    part = bool(use.left) and not use.beside
    capacity = layer.capacity
    if capacity is None or capacity < rows:
        capacity = room if room > rows or part else None
    if capacity is not None and capacity < rows:
        capacity = None  # one row does not tell along which axis there is room for more
    window = layer.window
    if step.gone and not step.computed and rows == step.before and not step.cropped:
        window = window or _reach(step, visible)
    kind = _kind(use, window, capacity)
    remark = layer.remark
    if step.rotated and step.again > 1:
        remark = ROTATED
    elif use.turned is not None and use.keys is None and not remark.startswith(ROTATED):
        remark = f"{UNROTATED}, in {use.turned.told(grows=capacity is None)}"
    grows = capacity is None
    if use.looks <= 1 and not layer.shared_dim and holds(*made.rows):
        stores.say(store, shared_dim=layer.value_dim)
    where = _where(use, grows=grows)
    if use.latents:
        remark = MADE_ANEW
        stores.say(store, latent_bytes=sum(one.row_bytes for one in use.latents))
    stores.say(store, kind=kind, capacity=capacity, window=window, where=where, remark=remark)


def _kind(use: SiteUse, window: int | None, capacity: int | None) -> str:
    """Class of a cache layer in a plain word."""
    if use.twin:
        return "derived"
    return "sliding" if window else "static" if capacity else "dynamic"


def _where(use: SiteUse, *, grows: bool) -> str:
    """What holds the rows, or that of which they are made."""
    found = use.found or use.latents
    where = ", ".join(dict.fromkeys(one.told(grows=grows) for one in found))
    alone = len(use.found) == 1
    return f"{'keys' if use.keys else 'values'}: {where}" if alone else where


def _reach(step: RowStep, visible: Tensor | None) -> int:
    """Rows that the newest query can see: a mask may hide the oldest of those it is given."""
    rows = len(step.slots)
    sequences, seq = step.cells.shape
    if visible is None or visible.shape[-1] != seq:
        return rows
    last = visible[..., -1, :].any(1).expand(sequences, seq).cpu().numpy()[:, step.slots]
    places = step.positions[:, step.slots]
    oldest = np.where(last, places, places.max()).min(1)
    return min(rows, int((places.max(1) - oldest).max()) + 1)
