"""A model whose layers somebody's loop calls by hand, and never the model: its steps all the same.

A step begins with the first part that is called after ids were looked up in the model's own
table. Once the model itself is called, its calls are the steps, and parts called beside it none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.ambient.implicit import Implicit
from kvtrace.record.ambient.left_out import LeftOut
from kvtrace.record.ambient.tables import ids_of, place_of, table_of
from kvtrace.record.capture.attention.levels import looks_like_attention
from kvtrace.record.capture.inner import inner_models
from kvtrace.record.capture.replaced.entrances import entrances
from kvtrace.record.capture.replaced.generate import generates
from kvtrace.record.capture.running import passes
from kvtrace.record.capture.symbolic import is_symbolic
from kvtrace.record.capture.tokens.inputs import named, tokens_in
from kvtrace.record.modes import unseen_by_modes
from kvtrace.record.recording import Recording

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Hook = Callable[[nn.Module, Args, Kwargs], None]


def follow_by_hand(recording: Recording, model: nn.Module) -> Callable[[], None]:
    """Take calls of a model's layers as its steps, until it is called; returns how to stop."""
    return _ByHand(recording, model).stop


class _ByHand:
    """Listens to a model, its tables and its other parts."""

    def __init__(self, recording: Recording, model: nn.Module) -> None:
        self._recording, self._model = recording, model
        self._steps = Implicit(recording, ids_of(model), begins_at_once=True, by_parts=True)
        inner, tables = inner_models(model), list(_tables(model))
        entered = {id(one) for _, one in entrances(model)}
        within = {id(one) for table in tables for one in table.modules()}
        hooks: list[tuple[nn.Module, Hook]] = [(model, self._called)]
        hooks += [(one, self._called_inside) for one in inner]
        hooks += [(one, self._looked_up) for one in tables]
        parts = [
            one
            for one in model.modules()
            if (any(one.children()) or looks_like_attention(type(one)))
            and id(one) not in entered | within
        ]
        hooks += [(one, self._part) for one in parts]
        self._beside: LeftOut | None = None
        self._heard = _plain(tables), [one for one in _plain(parts) if one is not model]
        self._undo = [
            one.register_forward_pre_hook(self._told(hook), with_kwargs=True, prepend=True).remove
            for one, hook in reversed(hooks)  # what is registered last is told first
            if not isinstance(one, torch.jit.ScriptModule)
        ]

    def _told(self, hook: Hook) -> Callable[..., None]:
        def told(module: nn.Module, args: Args, kwargs: Kwargs | None = None) -> None:
            # one that was removed by another of the same call is told of no keywords
            if not is_symbolic() and kwargs is not None and not self._is_nobodys:
                hook(module, args, kwargs)

        return told

    def stop(self) -> None:
        """The step under way is over, there are no more, and nothing is listened to."""
        self._close()
        if self._beside is not None:
            self._beside.stop()

    def _close(self) -> None:
        """The step under way is over, and there are no more."""
        while self._undo:
            self._undo.pop()()
        with unseen_by_modes():
            self._steps.close()

    @property
    def _is_nobodys(self) -> bool:
        """Whether a call is none of a loop by hand: a lane's, another thread's, a forward's own."""
        if not self._undo or self._is_ours:
            return True
        return bool(passes()) and not self._steps.under_way

    @property
    def _is_ours(self) -> bool:
        """Whether a call is a lane's, or another thread's or process's."""
        watch = self._recording.watch
        if watch is None or watch.paused or watch.is_fork:
            return True
        return watch.turns.are_others()

    def _called(self, *_: object) -> None:
        self._close()
        if self._beside is None and self._recording.watch is not None:
            said = self._recording.watch.says
            self._beside = LeftOut(
                *self._heard,
                lambda: not (passes() or self._is_ours),
                lambda words: said.update({words: None}),
            )

    def _called_inside(self, part: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """A large part is called: in the model's place, if it is given tokens."""
        given = named(part, args, kwargs)
        if isinstance(given.get("inputs_embeds"), Tensor) or tokens_in(given) is not None:
            self._called()

    def _looked_up(self, table: nn.Module, args: Args, kwargs: Kwargs) -> None:
        with unseen_by_modes():
            weights, found = table_of(table), tokens_in(named(table, args, kwargs))
            if weights is not None and found is not None:
                self._steps.looked_up(found[1], place_of(weights))

    def _part(self, _: nn.Module, args: Args, kwargs: Kwargs) -> None:
        if self._steps.under_way or generates(self._model):
            return
        given = (one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
        rows = next((one for one in given if one.is_floating_point() and one.dim() > 1), None)
        if rows is not None:
            with unseen_by_modes():
                self._steps.part_called(rows.shape[:-1].numel())


def _plain(modules: list[nn.Module]) -> list[nn.Module]:
    """Those that take hooks."""
    return [one for one in modules if not isinstance(one, torch.jit.ScriptModule)]


def _tables(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that look ids up and do nothing more."""
    for part in module.children():
        if table_of(part) is not None:
            yield part
        elif any(isinstance(one, nn.Embedding) for one in part.modules()):
            yield from _tables(part)
