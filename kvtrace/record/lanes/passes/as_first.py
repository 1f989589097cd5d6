"""What another forward must attend with to be a lane of the tokens: what the first one did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.given.shown import heads_of, is_causal, renamed, sees_alike
from kvtrace.record.lanes.passes.batch import Batch


class AsFirst(Struct, frozen=True):
    """What the first forward of a recording attended with.

    Attributes:
        order: Module and number of every call.
        codes: Where in somebody's code every call lies.
        heads: How many query heads every call had, and their size.
        sites: Those that attended to the text itself.
        crossing: Those that attended to another text.
        causal: No query of a site saw a later row.
        several: It had more than one new token, without which the mask does not tell.
        only_own: Sites that attended to the new rows alone.
        divided: Sites that saw later rows, and of which some queries saw other rows than others.
    """

    order: tuple[tuple[str, int], ...] = ()
    codes: tuple[str, ...] = ()
    heads: tuple[tuple[int, int], ...] = ()
    sites: frozenset[tuple[str, int]] = frozenset()
    crossing: frozenset[tuple[str, int]] = frozenset()
    causal: bool = False
    several: bool = False
    only_own: frozenset[tuple[str, int]] = frozenset()
    divided: frozenset[tuple[str, int]] = frozenset()

    def named(self, calls: Sequence[AttentionCall], *, always: bool) -> Sequence[AttentionCall]:
        """The calls under the sites that the first forward met, where they are the same ones.

        Args:
            calls: Of another forward.
            always: As many calls are the same ones, whatever they are called.
        """
        if len(calls) > len(self.order):  # a forward that encodes too, and in no module of its own
            met = frozenset(self.order)
            calls = [x for x in calls if x.kind != "encoder" or (x.module, x.call) in met]
            there = [one for one in calls if one.code in self.codes]
            calls = there if tuple(one.code for one in there) == self.codes else calls
        same = len(calls) == len(self.order)
        if not same or not (always or renamed(calls, self.order, self.heads)):
            return calls
        # where no module was called, a site is called by the function it lies in
        return [
            replace(one, module=module, call=number)
            for one, (module, number) in zip(calls, self.order, strict=True)
        ]

    def misfit(
        self,
        forward: Forward,
        batch: Batch,
        *,
        outside: bool,
        given_masks: bool,
        masked: bool,
        singly: bool,
    ) -> str:
        """Why a forward is no other lane of these tokens; empty: it is one.

        Args:
            forward: It.
            batch: The tokens.
            outside: What is called keeps rows outside of what it is given.
            given_masks: It was called with what the first call was given.
            masked: A mask was among that.
            singly: It was given one token at a time: there was none to hide from earlier ones.
        """
        wanted = (len(batch.paths), batch.rows)
        calls = {(call.module, call.call): call for call in forward.calls}
        only_own = self.only_own == self.sites
        for site in sorted(self.sites):
            call = calls.get(site)
            if call is None:
                return f"{site[0] or 'the model'} did not attend"
            found = (call.queries.shape[0], call.queries.shape[2])
            if found != wanted:
                left = found[0] == wanted[0] and found[1] < wanted[1]
                why = (
                    "; it leaves tokens out, and which rows are whose is not known" if left else ""
                )
                named = site[0] or "the model"
                return f"{named} had {found[1]} new rows for {wanted[1]} tokens{why}"
            if outside and only_own and call.keys.shape[2] != wanted[1]:
                return f"{site[0]} read rows that it keeps outside of what it is given"
            if given_masks and only_own and call.keys.shape[2] < wanted[1]:
                return f"{site[0]} read fewer rows than tokens, as an argument says"
        asked = self.several or masked
        hiding = self.sites if asked or given_masks else self.only_own if singly else frozenset()
        why = "its mask is an argument"
        if singly and not asked:
            why = "nothing hides them, for it was given one token at a time"
        return self._unmasked(calls, why, hiding if batch.rows > 1 else frozenset())

    def _unmasked(
        self,
        calls: Mapping[tuple[str, int], AttentionCall],
        why: str,
        hiding: frozenset[tuple[str, int]],
    ) -> str:
        """Which site saw what the first forward's mask hid; empty: none.

        Args:
            calls: By site.
            why: It did, where the first was causal.
            hiding: Sites that should hide later tokens, if those of the first did.
        """
        for site in sorted(hiding if self.causal else ()):
            if not is_causal(calls[site]):
                return f"{site[0] or 'the model'} saw later tokens: {why}"
        for site in sorted(self.divided):
            if sees_alike(calls[site]):
                return f"{site[0] or 'the model'} saw all tokens: its mask is an argument"
        return ""


def as_first(forward: Forward) -> AsFirst:
    """What the first forward attended with."""
    own = [call for call in forward.calls if call.kind == "self"]
    return AsFirst(
        order=tuple((call.module, call.call) for call in forward.calls),
        codes=tuple(call.code for call in forward.calls),
        heads=tuple(heads_of(call) for call in forward.calls),
        sites=frozenset((call.module, call.call) for call in own),
        crossing=frozenset((one.module, one.call) for one in forward.calls if one.kind == "cross"),
        causal=all(is_causal(call) for call in own),
        several=forward.new > 1,
        only_own=frozenset(
            (call.module, call.call) for call in own if call.keys.shape[2] == forward.new
        ),
        divided=frozenset(
            (call.module, call.call) for call in own if not (is_causal(call) or sees_alike(call))
        ),
    )
