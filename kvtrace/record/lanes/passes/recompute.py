"""A forward without a cache over whole token paths: the other lane's tensors.

A model whose cache is an argument is called with the tokens alone (and a mask where there is
padding), never with what the cached run passed along its cache, so that it shares none of that
code. Any other is copied before its first call, and a fresh copy is called: with the tokens alone
where that works, else with what the first call was given. The model is as it was afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from msgspec.structs import replace
from torch import nn

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.forward import Beginning, Forward
from kvtrace.record.lanes.choices.held import held
from kvtrace.record.lanes.choices.ties import Ties
from kvtrace.record.lanes.given.codes import layout_of
from kvtrace.record.lanes.given.extend import CannotExtendError
from kvtrace.record.lanes.given.first_call import positional
from kvtrace.record.lanes.given.shown import (
    any_of,
    crossing,
    heads_of,
    ids_each,
    is_causal,
    renamed,
    rows_beyond_ids,
    trimmed,
)
from kvtrace.record.lanes.given.told import Told
from kvtrace.record.lanes.passes.asked import DTYPES, forward_of, recompute
from kvtrace.record.lanes.passes.autocast import Autocast, as_then, autocast_of
from kvtrace.record.lanes.passes.batch import Batch, CannotRecomputeError
from kvtrace.record.lanes.passes.called_with import called_with
from kvtrace.record.lanes.state.attributes import Kept, Place
from kvtrace.record.lanes.state.contexts import Contexts
from kvtrace.record.lanes.state.outside import Outside
from kvtrace.record.lanes.state.settings import Settings, as_set
from kvtrace.record.lanes.state.snapshot import Snapshot, copied, keeps_nothing, take
from kvtrace.record.paged.batch import is_packed
from kvtrace.record.parts import unread

_TRIED = {
    "bare": "with the tokens alone",
    "replayed": "with its first arguments extended",
    "told": "with what its steps were given, joined",
    "unswitched": "with the tokens alone and no cache turned on",
    "beside": "with what globals of its code told it for its steps, joined",
}

_SINGLY = (
    "the model was given one token at a time, and no call with all of them went, which is what "
    "its cache is compared with"
)

_ALONE = ("bare", "unswitched")


@dataclass(slots=True)
class Recomputer:
    """How the tokens of one recording are computed again.

    Attributes:
        model: The watched one.
        snapshot: As it was before its first call; None: it keeps nothing, so it is called itself.
        reference: "bare" or "replayed", once one of them worked; "": none did so far.
        notes: What qualifies the lane, in sentences.
        ties: What the cached lane chose where it had to (experts, slots).
        autocast: What was on when the model was first called; None: nothing was.
        told: What the steps were given besides tokens.
        settings: What a program set on the model between its texts.
        contexts: What the model was told besides its arguments.
    """

    model: nn.Module
    snapshot: Snapshot | None = None
    reference: str = ""
    notes: dict[str, None] = field(default_factory=dict)
    ties: Ties = field(default_factory=Ties)
    autocast: Autocast | None = None
    told: Told = field(default_factory=Told)
    settings: Settings = field(init=False)
    contexts: Contexts = field(init=False)
    _way: str = ""
    _device: torch.device | None = None
    _begun: bool = False
    _none: str = ""
    _outside: Callable[[], AbstractContextManager[None]] | None = None
    _written: Outside | None = None
    _only_own: bool = False
    _also: list[tuple[str, Snapshot]] = field(default_factory=list)
    _order: tuple[tuple[str, int], ...] = ()
    _heads: tuple[tuple[int, int], ...] = ()
    _sites: frozenset[tuple[str, int]] = frozenset()
    _crossing: frozenset[str] = frozenset()
    _causal: bool = False
    _several: bool = False
    _singly: bool = True
    _ready: tuple[object, str | None, Forward] | None = None
    _callers: set[threading.Thread] = field(default_factory=set)
    _apart: nn.Module | None = None

    def __post_init__(self) -> None:
        self.settings = Settings(self.model)
        self.contexts = Contexts(self.model)

    def begin(self, beginning: Beginning) -> None:
        """A forward of the model is about to run: before the first, take the snapshot."""
        self._callers.add(threading.current_thread())
        self._singly &= beginning.tokens is not None and beginning.tokens.shape[-1] == 1
        self.settings.begin()
        self.contexts.look()
        if self._begun:
            self._served(beginning)
            return
        self._begun = True
        if beginning.tokens is not None:
            self._device = beginning.tokens.device
        self.autocast = autocast_of(self._device or torch.device("cpu"))
        if keeps_nothing(self.model):
            self._served(beginning)
            return
        if type(self.model).forward is nn.Module.forward:
            named = type(self.model).__name__
            self._none = (
                f"{named} has no forward, and no method of it was given the ids of a whole text"
                if any(self.model.children())
                else "there is no module that could be called again"
            )
            return
        taken = take(self.model, beginning.arguments)
        if isinstance(taken, str):
            self._none = taken
            return
        self.snapshot, self._written = taken, Outside.of_model(self.model)
        for odd in taken.odd:
            self.notes[f"recomputed lane: shares {odd} with the model"] = None

    def instead(
        self, snapshot: Snapshot, outside: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """There is no module, but a function that can be called again.

        Args:
            snapshot: Of it, before its first call.
            outside: Entered around each call: what it keeps elsewhere is there what it was.
        """
        self.snapshot, self._outside, self._none = snapshot, outside, ""
        for odd in snapshot.odd:
            self.notes[f"recomputed lane: shares {odd} with the program"] = None

    def also(self, method: str, snapshot: Snapshot) -> None:
        """Where its forward does not do: a method of the model that can be called again.

        Args:
            method: Its name.
            snapshot: Of the model with it as its forward, before its first call.
        """
        self._none = ""
        self._also.append((method, snapshot))

    def first(self, forward: Forward) -> None:
        """The first forward is over: what it attended with is what others must."""
        if self._written is not None and not self._written.changed:
            self._written = None  # all it keeps is its own, or given
        calls = [call for call in forward.calls if call.kind == "self"]
        self._sites = frozenset((call.module, call.call) for call in calls)
        self._order = tuple((call.module, call.call) for call in forward.calls)
        self._heads = tuple(heads_of(call) for call in forward.calls)
        self._crossing = frozenset(one.module for one in forward.calls if one.kind == "cross")
        self._causal = all(is_causal(call) for call in calls)  # one token does not tell
        self._several = forward.new > 1
        each = ids_each(forward)
        if each > 1 and layout_of(forward) is None:
            self._none = f"it takes {each} ids for one position, and the first of them is recorded"
        self._only_own = all(call.keys.shape[2] == forward.new for call in calls)
        # only the attention tells tokens from sequences
        size = forward.new, rows_beyond_ids(forward), forward.arguments
        self.snapshot = None if self.snapshot is None else self.snapshot.of_tokens(*size)
        self._also = [(method, one.of_tokens(*size)) for method, one in self._also]

    @property
    def most(self) -> int | None:
        """Paths that go into one call at most; None: any number."""
        return min((one.call.most for _, one in self._snapshots), default=None)

    @property
    def _snapshots(self) -> list[tuple[str, Snapshot]]:
        """Those that may be called: (method, snapshot), no method for the model's own forward."""
        own = [] if self.snapshot is None else [("", self.snapshot)]
        return [
            (method, replace(one, call=call))
            for method, one in (*own, *self._also)
            for call in one.call.layouts
        ]

    def settle(self, batch: Batch, dtype: str | None = None) -> None:
        """Find out which way works, and whether it does in a dtype.

        Raises:
            CannotRecomputeError: None does.
        """
        if not self.reference or dtype is not None:
            self._ready = (_key(batch), dtype, self.run(batch, dtype=dtype))

    def run(self, batch: Batch, *, dtype: str | None = None) -> Forward:
        """The tensors of a forward over a batch of paths, no cache.

        Args:
            batch: What to run it over.
            dtype: Parameters and buffers are taken in this dtype; None: as they are.

        Raises:
            CannotRecomputeError: It failed, or made nothing to compare.
        """
        ready, self._ready = self._ready, None
        if ready is not None and ready[:2] == (_key(batch), dtype):
            return ready[2]
        if self._none:
            raise CannotRecomputeError(self._none)
        settings = self.settings.of(batch.paths)
        try:
            return self._run(batch, dtype, settings)
        except CannotRecomputeError:
            if not settings:
                raise
        return self._run(batch, dtype, {})

    def _run(self, batch: Batch, dtype: str | None, settings: Mapping[Place, Kept]) -> Forward:
        """The same, with attributes of the model as they are given."""
        if not self._snapshots:
            model = self._alone()
            with as_then(self.autocast, dtype), as_set(model, settings):
                found = recompute(model, batch, self.ties, dtype=dtype, device=self._device)
            self.reference = "bare"
            return found
        reasons: dict[str, str] = {}
        for method, snapshot in self._snapshots:
            ways = ["replayed", "bare"] if method else ["bare", "replayed"]
            ways += ["told"] * bool(self.told.of(batch.paths, snapshot.call))
            ways += ["beside"] * self.contexts.there
            ways += ["unswitched"] * bool(snapshot.call.switches)
            for name in [self._way] if self._way else ways:
                try:
                    found = self._called(snapshot, name, batch, dtype, settings)
                except (CannotRecomputeError, CannotExtendError) as error:
                    through = f"through {method}, " if method else ""
                    reasons.setdefault(str(error), f"{through}{_TRIED[name]}")
                    continue
                self.snapshot, self._also = snapshot, []
                self._settled(name)
                return found
        said = [f"{how}: {why}" for why, how in reasons.items()]
        if self._singly and batch.rows > 1:
            said[0] = f"{_SINGLY}; tried {said[0]}"
        raise CannotRecomputeError(
            "; ".join((*unread(self._snapshots[0][1].call.arguments), *said))
        )

    def _served(self, beginning: Beginning) -> None:
        """An engine is about to run the model, and has not set its configuration yet."""
        if self._apart is None and not (self._none or self._snapshots):
            self._apart = copied(self.model) if is_packed(beginning.arguments) else None

    def _alone(self) -> nn.Module:
        """The model; a copy with its weights while another thread may be in the middle of a call.

        Some of transformers' forwards set their configuration while they run.
        """
        mine = threading.current_thread()
        if all(one is mine or not one.is_alive() for one in self._callers):
            return self.model
        if self._apart is None:
            self._apart = copied(self.model)
        return self._apart

    def _called(
        self,
        snapshot: Snapshot,
        name: str,
        batch: Batch,
        dtype: str | None,
        settings: Mapping[Place, Kept],
    ) -> Forward:
        """One way, on a fresh copy."""
        kind = None if dtype is None else DTYPES[dtype]
        model, call = snapshot.fresh(kind)
        tokens, arguments = called_with(name, call, batch, self.told, kind)
        places, named = positional(call.parameters, arguments)
        if self._outside is not None and snapshot.changed:
            raise CannotRecomputeError("what it was first given was written to since")
        beside: AbstractContextManager[None] = nullcontext()
        if name == "beside":
            beside = self.contexts.told(self.contexts.of(batch.paths, call, tokens))
        with self._around(), beside, as_then(self.autocast, kind), as_set(model, settings, kind):
            choosing = held(self.ties, batch.paths, batch.rows, told=dtype is None)
            forward = forward_of(model, lambda: model(*places, **named), choosing)
            if self._outside is not None or self._written is not None:
                forward = _with_own_rows(forward)  # a buffer out there is about to be what it was
        if kind is not None and self._outside is not None and not any_of(kind, forward.calls):
            raise CannotRecomputeError(
                "its weights lie outside of what it is given, and stay as they are"
            )
        calls = [
            trimmed(crossing(one, self._crossing), batch.rows)
            for one in self._named_as_first(forward.calls)
        ]
        forward = replace(forward, calls=tuple(calls))
        # one that was given a mask may hide nothing by itself
        why = self._misfit(forward, batch, given_masks=name not in _ALONE, masked=call.masked)
        if why:
            raise CannotRecomputeError(why)
        return forward

    def _around(self) -> AbstractContextManager[None]:
        """Inside, what the code keeps elsewhere is there what it was before its first call."""
        if self._outside is not None:
            return self._outside()
        return nullcontext() if self._written is None else self._written.as_before()

    def _named_as_first(self, calls: Sequence[AttentionCall]) -> Sequence[AttentionCall]:
        """The calls under the sites that the first forward met, where they are the same ones."""
        same = len(calls) == len(self._order)
        if not same or (self._outside is None and not renamed(calls, self._order, self._heads)):
            return calls
        # where no module was called, a site is called by the function it lies in
        return [
            replace(one, module=module, call=number)
            for one, (module, number) in zip(calls, self._order, strict=True)
        ]

    def _misfit(self, forward: Forward, batch: Batch, *, given_masks: bool, masked: bool) -> str:
        """Why a forward is no other lane of these tokens; empty: it is one."""
        wanted = (len(batch.paths), batch.rows)
        calls = {(call.module, call.call): call for call in forward.calls}
        for site in sorted(self._sites):
            call = calls.get(site)
            if call is None:
                return f"{site[0] or 'the model'} did not attend"
            found = (call.queries.shape[0], call.queries.shape[2])
            if found != wanted:
                return f"{site[0] or 'the model'} had {found[1]} new rows for {wanted[1]} tokens"
            if self._outside is not None and self._only_own and call.keys.shape[2] != wanted[1]:
                return f"{site[0]} read rows that it keeps outside of what it is given"
            if given_masks and self._only_own and call.keys.shape[2] < wanted[1]:
                return f"{site[0]} read fewer rows than tokens, as an argument says"
        tells = self._several or given_masks or masked
        if self._causal and tells and batch.rows > 1:
            loose = next(
                (calls[one] for one in sorted(self._sites) if not is_causal(calls[one])), None
            )
            if loose is not None:
                return f"{loose.module or 'the model'} saw later tokens: its mask is an argument"
        return ""

    def _settled(self, name: str) -> None:
        if self.reference:
            return
        self._way, self.reference = name, "bare" if name in _ALONE else "replayed"
        if name not in _ALONE:
            self.notes[
                "recomputed lane: the model was called with what its first call was given, "
                "extended to all tokens; it shares the code of the cache, so that what is wrong in "
                "both stays unseen"
            ] = None


def _with_own_rows(forward: Forward) -> Forward:
    """The same, with rows of its own."""
    calls = (
        replace(one, keys=one.keys.clone(), values=one.values.clone()) for one in forward.calls
    )
    return replace(forward, calls=tuple(calls))


def _key(batch: Batch) -> object:
    return [(path.tokens, path.padding) for path in batch.paths], batch.keep
