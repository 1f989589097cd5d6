"""A forward without a cache over whole token paths: the other lane's tensors.

A model whose cache is an argument is called with the tokens alone (and a mask where there is
padding), never with what the cached run passed along its cache, so that it shares none of that
code. Any other is copied before its first call, and a fresh copy is called: with the tokens alone
where that works, else with what the first call was given. The model is as it was afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kvtrace.record.capture.calls import AttentionCall
from kvtrace.record.capture.choices import Chooser
from kvtrace.record.capture.entrances import asking
from kvtrace.record.capture.forward import Beginning, Forward
from kvtrace.record.capture.inputs import tokens_of
from kvtrace.record.capture.interface import without_pool
from kvtrace.record.capture.watch import Watch
from kvtrace.record.chance import own_chance
from kvtrace.record.lanes.asked import arguments_for, cast, filled, padded_for
from kvtrace.record.lanes.autocast import Autocast, as_then, autocast_of
from kvtrace.record.lanes.extend import CannotExtendError, FirstCall, positional
from kvtrace.record.lanes.held import held
from kvtrace.record.lanes.paths import Path
from kvtrace.record.lanes.snapshot import Snapshot, keeps_nothing, take
from kvtrace.record.lanes.ties import Ties

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class Batch:
    """Paths that are recomputed together.

    Attributes:
        paths: In the order of the batch; shorter ones are filled up at the right, which a causal
            model does not see.
        keep: Rows whose logits are wanted, ascending; None: all.
        extra: Further arguments, such as an encoder's output.
    """

    paths: Sequence[Path]
    keep: Sequence[int] | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of the longest path."""
        return max(len(path.tokens) for path in self.paths)


class CannotRecomputeError(Exception):
    """The model does not run over tokens alone; the message says why."""


Way = Callable[[FirstCall, Tensor], dict[str, object]]

_WAYS: dict[str, Way] = {"bare": FirstCall.bare, "replayed": FirstCall.replayed}
_TRIED = {"bare": "with the tokens alone", "replayed": "with its first arguments extended"}

_FAULTS = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
)
"""What a model may raise that is called in a way nobody wrote it for."""


@dataclass(slots=True)
class Again:
    """How the tokens of one recording are computed again.

    Attributes:
        model: The watched one.
        snapshot: As it was before its first call; None: it keeps nothing, so it is called itself.
        reference: "bare" or "replayed", once one of them worked; "": none did so far.
        notes: What qualifies the lane, in sentences.
        ties: What the cached lane chose where it had to (experts, slots).
        autocast: What was on when the model was first called; None: nothing was.
    """

    model: nn.Module
    snapshot: Snapshot | None = None
    reference: str = ""
    notes: dict[str, None] = field(default_factory=dict)
    ties: Ties = field(default_factory=Ties)
    autocast: Autocast | None = None
    _device: torch.device | None = None
    _begun: bool = False
    _none: str = ""
    _outside: Callable[[], AbstractContextManager[None]] | None = None
    _only_own: bool = False
    _order: tuple[tuple[str, int], ...] = ()
    _sites: frozenset[tuple[str, int]] = frozenset()
    _crossing: frozenset[str] = frozenset()
    _causal: bool = False
    _ready: tuple[object, str | None, Forward] | None = None

    def begin(self, beginning: Beginning) -> None:
        """A forward of the model is about to run: before the first, take the snapshot."""
        if self._begun:
            return
        self._begun = True
        if beginning.tokens is not None:
            self._device = beginning.tokens.device
        self.autocast = autocast_of(self._device or torch.device("cpu"))
        if keeps_nothing(self.model):
            return
        if type(self.model).forward is nn.Module.forward:
            self._none = "there is no module that could be called again"
            return
        taken = take(self.model, beginning.arguments)
        if isinstance(taken, str):
            self._none = taken
            return
        self.snapshot = taken
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

    def first(self, forward: Forward) -> None:
        """The first forward is over: what it attended with is what others must."""
        calls = [call for call in forward.calls if call.kind == "self"]
        self._sites = frozenset((call.module, call.call) for call in calls)
        self._order = tuple((call.module, call.call) for call in forward.calls)
        self._crossing = frozenset(one.module for one in forward.calls if one.kind == "cross")
        self._causal = forward.new > 1 and all(_is_causal(call) for call in calls)
        each = _ids_each(forward)
        if each > 1:
            self._none = f"it takes {each} ids for one position, and the first of them is recorded"
        self._only_own = all(call.keys.shape[2] == forward.new for call in calls)
        if self.snapshot is not None:
            # only the attention tells tokens from sequences
            call = replace(self.snapshot.call, new=forward.new)
            self.snapshot = replace(self.snapshot, call=call)

    @property
    def most(self) -> int | None:
        """Paths that go into one call at most; None: any number."""
        if self.snapshot is None:
            return None
        return self.snapshot.call.most

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
        if self.snapshot is None:
            with as_then(self.autocast, dtype):
                found = recompute(self.model, batch, self.ties, dtype=dtype, device=self._device)
            self.reference = "bare"
            return found
        reasons: dict[str, str] = {}
        for name in [self.reference] if self.reference else _WAYS:
            try:
                found = self._called(self.snapshot, name, batch, dtype)
            except (CannotRecomputeError, CannotExtendError) as error:
                reasons.setdefault(str(error), _TRIED[name])
                continue
            self._settled(name)
            return found
        raise CannotRecomputeError("; ".join(f"{how}: {why}" for why, how in reasons.items()))

    def _called(self, snapshot: Snapshot, name: str, batch: Batch, dtype: str | None) -> Forward:
        """One way, on a fresh copy."""
        kind = None if dtype is None else DTYPES[dtype]
        model, call = snapshot.fresh(kind)
        ids = call.arguments[call.ids]
        device = ids.device if isinstance(ids, Tensor) else torch.device("cpu")
        like = ids.dtype if isinstance(ids, Tensor) else torch.long
        tokens = filled(batch, device).to(like)
        arguments = _WAYS[name](call, tokens)
        if any(path.padding for path in batch.paths):
            # what was passed is taken, also by a forward that names only some and takes **the rest
            known = dict.fromkeys((*call.parameters, *call.arguments))
            if "attention_mask" not in known:
                raise CannotRecomputeError("it has padding at the left and takes no attention_mask")
            if call.arguments.get("position_ids") is None:
                known.pop("position_ids", None)  # the model counts for itself, padding included
            arguments |= padded_for(batch, device, known)
        places, named = positional(call.parameters, arguments)
        if self._outside is not None and snapshot.changed:
            raise CannotRecomputeError("what it was first given was written to since")
        around = nullcontext() if self._outside is None else self._outside()
        with around, as_then(self.autocast, kind):
            choosing = held(self.ties, batch.paths, batch.rows, told=dtype is None)
            forward = _forward(model, lambda: model(*places, **named), choosing)
        calls = forward.calls
        if kind is not None and self._outside is not None and not _any_of(kind, calls):
            raise CannotRecomputeError(
                "its weights lie outside of what it is given, and stay as they are"
            )
        if self._outside is not None and len(calls) == len(self._order):
            # without a module, a site is called by the function it lies in
            calls = tuple(
                replace(one, module=module, call=number)
                for one, (module, number) in zip(calls, self._order, strict=True)
            )
        forward = replace(
            forward, calls=tuple(trimmed(self._kinded(one), batch.rows) for one in calls)
        )
        why = self._misfit(forward, batch)
        if why:
            raise CannotRecomputeError(why)
        return forward

    def _kinded(self, call: AttentionCall) -> AttentionCall:
        """The call as the first forward showed it: two texts of one length look like one."""
        crosses = call.kind == "self" and call.module in self._crossing
        return replace(call, kind="cross") if crosses else call

    def _misfit(self, forward: Forward, batch: Batch) -> str:
        """Why a forward is no other lane of these tokens; empty: it is one."""
        wanted = (len(batch.paths), batch.rows)
        calls = {(call.module, call.call): call for call in forward.calls}
        for site in sorted(self._sites):
            call = calls.get(site)
            if call is None:
                return f"{site[0]} did not attend"
            found = (call.queries.shape[0], call.queries.shape[2])
            if found != wanted:
                return f"{site[0]} had {found[1]} new rows for {wanted[1]} tokens"
            if self._outside is not None and self._only_own and call.keys.shape[2] != wanted[1]:
                return f"{site[0]} read rows that it keeps outside of what it is given"
        if self._causal and batch.rows > 1:
            loose = next(
                (calls[one] for one in sorted(self._sites) if not _is_causal(calls[one])), None
            )
            if loose is not None:
                return f"{loose.module} saw later tokens: its mask is an argument"
        return ""

    def _settled(self, name: str) -> None:
        if self.reference:
            return
        self.reference = name
        if name == "replayed":
            self.notes[
                "recomputed lane: the model was called with what its first call was given, "
                "extended to all tokens; it shares the code of the cache, so that what is wrong in "
                "both stays unseen"
            ] = None


def _any_of(dtype: torch.dtype, calls: Sequence[AttentionCall]) -> bool:
    return any(dtype in (one.queries.dtype, one.keys.dtype, one.values.dtype) for one in calls)


def _ids_each(forward: Forward) -> int:
    """Ids for one position, as the codebooks of music models."""
    given, taken = tokens_of(forward.arguments), forward.tokens
    if given is None or taken is None or not taken.numel():
        return 1
    if given.dim() < 3 and given.shape[-1] != taken.shape[-1]:
        return 1
    return given.numel() // taken.numel()


def _key(batch: Batch) -> object:
    return [(path.tokens, path.padding) for path in batch.paths], batch.keep


def recompute(
    model: nn.Module,
    batch: Batch,
    ties: Ties,
    *,
    dtype: str | None = None,
    device: torch.device | None = None,
) -> Forward:
    """The tensors of a forward over a batch of paths, by a model that takes its cache along.

    Args:
        model: The watched model.
        batch: What to run it over.
        ties: What the cached lane chose.
        dtype: Parameters and buffers are taken in this dtype; None: as they are.
        device: Of the tokens; None: that of the first parameter that is anywhere.

    Raises:
        CannotRecomputeError: It failed, or returned nothing to compare.
    """
    arguments = arguments_for(model, batch, device)
    choosing = held(ties, batch.paths, batch.rows, told=dtype is None)
    if dtype is None:
        return _forward(model, lambda: model(**arguments), choosing)
    wide = _cast(model, DTYPES[dtype])
    given = {name: cast(value, DTYPES[dtype]) for name, value in arguments.items()}
    return _forward(model, lambda: functional_call(model, wide, (), given), choosing)


def _forward(
    model: nn.Module, run: Callable[[], object], choosing: Chooser | None = None
) -> Forward:
    """What is seen of a model while something runs."""
    found: list[Forward] = []
    asked = None if choosing is None else lambda: choosing
    watch = Watch(model, found.append, choosing=asked)
    watch.bind()  # an engine may still run the model in its own thread
    with asking(), torch.no_grad(), own_chance(model), without_pool(), watch:
        try:
            run()
        except _FAULTS as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise CannotRecomputeError(reason) from error
    forwards = [one for one in found if one.part == "model"]
    if not forwards:
        raise CannotRecomputeError("its forward was not seen")
    return forwards[-1]


def trimmed(call: AttentionCall, rows: int) -> AttentionCall:
    """A call without the slots of a larger buffer that no query saw.

    Args:
        call: Its keys may have more rows than there are tokens.
        rows: Tokens.
    """
    seq = call.keys.shape[2]
    if seq <= rows or call.visible is None or call.kind != "self":
        return call
    seen = call.visible.expand(*call.visible.shape[:-1], seq).reshape(-1, seq).any(dim=0)
    live = seen.nonzero().flatten()
    if len(live) != rows:
        return call
    return replace(
        call,
        keys=call.keys[:, :, live],
        values=call.values[:, :, live],
        visible=call.visible.expand(*call.visible.shape[:-1], seq)[..., live],
        bias=None if call.bias is None else call.bias.expand(*call.bias.shape[:-1], seq)[..., live],
    )


def _is_causal(call: AttentionCall) -> bool:
    """Whether no query sees a key that is newer than itself, as far as the mask says."""
    new, seq = call.queries.shape[2], call.keys.shape[2]
    if call.causal or new < 2:
        return True
    if call.visible is None:
        return False
    table = call.visible.expand(*call.visible.shape[:-2], new, seq).reshape(-1, new, seq)
    first = bool(table[:, 0].sum(dim=-1).le(max(1, seq - new + 1)).all())
    return first and not bool(table[:, 0].eq(table[:, -1]).all())


def _cast(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every floating parameter and buffer in another dtype, by name; the model keeps its own."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: one.detach().to(dtype) for name, one in named if one.is_floating_point()}
