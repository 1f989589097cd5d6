"""A forward without a cache over whole token paths: the other lane's tensors.

A model whose cache is an argument is called with the tokens alone (and a mask where there is
padding), never with what the cached run passed along its cache, so that it shares none of that
code. Any other is copied before its first call, and a fresh copy is called: with the tokens alone
where that works, else with what the first call was given. The model is as it was afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import monotonic

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from kvtrace.record.capture.forward import Beginning, Forward
from kvtrace.record.capture.tokens.bare_rows import rows_in
from kvtrace.record.lanes.as_it_was.attributes import Kept, Place
from kvtrace.record.lanes.as_it_was.contexts import Contexts
from kvtrace.record.lanes.as_it_was.outside import Outside
from kvtrace.record.lanes.as_it_was.settings import Settings, as_set
from kvtrace.record.lanes.as_it_was.snapshot import Snapshot, keeps_nothing, take, take_whole
from kvtrace.record.lanes.choices.held import held
from kvtrace.record.lanes.choices.ties import Ties
from kvtrace.record.lanes.given.codes import layout_of
from kvtrace.record.lanes.given.extend import CannotExtendError
from kvtrace.record.lanes.given.first_call import positional
from kvtrace.record.lanes.given.shown import (
    any_of,
    crossing,
    ids_each,
    rows_beyond_ids,
    trimmed,
)
from kvtrace.record.lanes.given.told import Told
from kvtrace.record.lanes.limits.one_place import written_over
from kvtrace.record.lanes.passes.apart import Apart
from kvtrace.record.lanes.passes.as_first import AsFirst, as_first
from kvtrace.record.lanes.passes.asked import DTYPES, forward_of, recompute
from kvtrace.record.lanes.passes.autocast import Autocast, as_then, autocast_of
from kvtrace.record.lanes.passes.batch import Batch, CannotRecomputeError
from kvtrace.record.lanes.passes.called_with import TELLING, called_with
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

_HIDING_TRIES, _HIDING_SECONDS = 16, 3.0
"""So many of the forms that a mask may have are tried, and for so long the others, each a pass."""

_WHOLE = "forward"
"""Of a model that is called by another method: its own."""


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
    _also: list[tuple[str, Snapshot]] = field(default_factory=list)
    _like: AsFirst = field(default_factory=AsFirst)
    _singly: bool = True
    _fed: bool = False
    _rows: Tensor | None = None
    _ready: tuple[object, str | None, Forward] | None = None
    _apart: Apart = field(init=False)

    def __post_init__(self) -> None:
        self.settings = Settings(self.model)
        self.contexts = Contexts(self.model)
        self._apart = Apart(self.model)

    def begin(self, beginning: Beginning) -> None:
        """A forward of the model is about to run: before the first, take the snapshot."""
        self._apart.called()
        self._singly &= beginning.tokens is not None and beginning.tokens.shape[-1] == 1
        self.settings.begin()
        self.contexts.look()
        if self._begun:
            if not (self._none or self._snapshots):
                self._apart.begin(beginning)
            return
        self._begun = True
        if beginning.tokens is not None:
            self._device = beginning.tokens.device
        self.autocast = autocast_of(self._device or torch.device("cpu"))
        if keeps_nothing(self.model):
            self._apart.begin(beginning)
            return
        if type(self.model).forward is nn.Module.forward:
            named = type(self.model).__name__
            self._none = (
                f"{named} has no forward, and no method of it was given the ids of a whole text"
                if any(self.model.children())
                else "there is no module that could be called again"
            )
            return
        taken = take(self.model, beginning.arguments, placed=beginning.placed)
        if isinstance(taken, str):
            self._none = taken
            return
        self.snapshot, self._written = taken, Outside.of_model(self.model)
        whole = take_whole(self.model, beginning.tokens, beginning.arguments)
        self._also += [] if whole is None else [(_WHOLE, whole)]
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

    def given_rows(self, model: nn.Module, arguments: Mapping[str, object]) -> None:
        """A step whose ids are known gives the model rows that were made of them.

        Args:
            model: About to be called.
            arguments: With which, by name.
        """
        found = rows_in(arguments)
        if found is None or self.snapshot is None or not self._begun:
            return
        if not (self._fed or self._like.order):  # its first step: it is as it was before
            taken = take(model, arguments)
            self._fed = not isinstance(taken, str)
            self._also += [] if isinstance(taken, str) else [(_WHOLE, taken)]
        self._rows = found[1].detach().clone() if self._fed else None

    def rows_given(self) -> Tensor | None:
        """The rows that the model was given in the step that is over; None: it was given none."""
        rows, self._rows = self._rows, None
        return rows

    def first(self, forward: Forward) -> None:
        """The first forward is over: what it attended with is what others must."""
        if self._written is not None and not self._written.changed:
            self._written = None  # all it keeps is its own, or given
        self._like = as_first(forward)
        each = ids_each(forward)
        if each > 1 and layout_of(forward) is None:
            self._none = f"it takes {each} ids for one position, and the first of them is recorded"
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
            model = self._apart.model_now
            with as_then(self.autocast, dtype), as_set(model, settings):
                found = recompute(model, batch, self.ties, dtype=dtype, device=self._device)
            self.reference = "bare"
            return found
        reasons: dict[str, str] = {}
        hiding, began = 0, monotonic()
        for method, snapshot in self._snapshots:
            hides = bool(snapshot.call.hidden)
            if hides and hiding >= _HIDING_TRIES and monotonic() > began + _HIDING_SECONDS:
                continue
            hiding += hides
            ways = ["bare", "replayed"] if method in ("", _WHOLE) else ["replayed", "bare"]
            ways += ["told"] * bool(self.told.of(batch.paths, snapshot.call))
            ways += ["beside"] * self.contexts.there
            ways += ["unswitched"] * bool(snapshot.call.switches)
            for name in [self._way] if self._way else ways[:1] if hides else ways:
                try:
                    singly = self._singly and method != _WHOLE
                    found = self._called(snapshot, name, batch, dtype, settings, singly=singly)
                except (CannotRecomputeError, CannotExtendError) as error:
                    if hides:
                        continue  # of the many forms that a mask may have, one will go
                    through = f"through {method}, " if method else ""
                    reasons.setdefault(str(error), f"{through}{_TRIED[name]}")
                    continue
                self.snapshot, self._also = snapshot, []
                self._settled(name, snapshot)
                return found
        said = [f"{how}: {why}" for why, how in reasons.items()]
        if self._singly and batch.rows > 1:
            said[0] = f"{_SINGLY}; tried {said[0]}"
        raise CannotRecomputeError(
            "; ".join((*unread(self._snapshots[0][1].call.arguments), *said))
        )

    def _called(
        self,
        snapshot: Snapshot,
        name: str,
        batch: Batch,
        dtype: str | None,
        settings: Mapping[Place, Kept],
        *,
        singly: bool,
    ) -> Forward:
        """One way, on a fresh copy; singly: what is called was given one token at a time."""
        kind = None if dtype is None else DTYPES[dtype]
        model, call = snapshot.fresh(kind)
        tokens, arguments = called_with(name, call, batch, self.told, kind)
        places, named = positional(call.parameters, arguments, call.placed)
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
        outside = self._outside is not None
        calls = self._like.named(forward.calls, always=outside)
        calls = [trimmed(crossing(one, self._like.crossing), batch.rows) for one in calls]
        forward = replace(forward, calls=tuple(calls))
        # one that was given a mask may hide nothing by itself, nor may one that takes one
        given, masked = name not in _ALONE, call.masked or call.takes_mask
        why = written_over(forward, batch.paths, self.told) if name in TELLING else ""
        why = why or self._like.misfit(
            forward, batch, outside=outside, given_masks=given, masked=masked, singly=singly
        )
        if why:
            raise CannotRecomputeError(why)
        return forward

    def _around(self) -> AbstractContextManager[None]:
        """Inside, what the code keeps elsewhere is there what it was before its first call."""
        if self._outside is not None:
            return self._outside()
        return nullcontext() if self._written is None else self._written.as_before()

    def _settled(self, name: str, snapshot: Snapshot) -> None:
        if self.reference:
            return
        for one in snapshot.call.hidden:
            self.notes[f"recomputed lane: given {one.name} ({one.said}), to hide later tokens"] = (
                None
            )
        self._way, self.reference = name, "bare" if name in _ALONE else "replayed"
        if snapshot.call.rows and self._fed:
            self.notes[
                "recomputed lane: given the rows that the program made of its tokens, as it made "
                "them: what is wrong in those stays unseen"
            ] = None
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
