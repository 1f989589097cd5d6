"""What is seen of a model while it is called for a lane, and how one that keeps nothing is called.

Such a model takes its cache along: it is called with the tokens alone, and with what goes with the
text of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.func import functional_call

from kvtrace.record.capture.forward import Beginning, Forward
from kvtrace.record.capture.replaced.choices import Chooser
from kvtrace.record.capture.replaced.entrances import asking
from kvtrace.record.capture.replaced.interface import without_pool
from kvtrace.record.capture.watch import Watch
from kvtrace.record.chance import own_chance
from kvtrace.record.lanes.choices.held import held
from kvtrace.record.lanes.choices.ties import Ties
from kvtrace.record.lanes.given.cache_arguments import arguments_for, cast, cast_all
from kvtrace.record.lanes.given.extend import CannotExtendError
from kvtrace.record.lanes.given.tables import too_short
from kvtrace.record.lanes.passes.batch import Batch, CannotRecomputeError

DTYPES = {"float32": torch.float32, "float64": torch.float64}

_FAULTS = (
    *(RuntimeError, TypeError, ValueError, AttributeError),
    *(LookupError, AssertionError, ArithmeticError, OSError),
)
"""What a model may raise that is called in a way nobody wrote it for."""


def recompute(
    model: nn.Module,
    batch: Batch,
    ties: Ties,
    *,
    dtype: str | None,
    device: torch.device | None,
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
    why = too_short(batch.extra, batch.rows)
    if why:
        raise CannotRecomputeError(why)
    try:
        arguments = arguments_for(model, batch, device)
    except CannotExtendError as error:
        raise CannotRecomputeError(str(error)) from error
    choosing = held(ties, batch.paths, batch.rows, told=dtype is None)
    if dtype is None:
        with _untouched(model):
            return forward_of(model, lambda: model(**arguments), choosing)
    wide = cast_all(model, DTYPES[dtype])
    given = {name: cast(value, DTYPES[dtype]) for name, value in arguments.items()}
    with _untouched(model):
        return forward_of(model, lambda: functional_call(model, wide, (), given), choosing)


def forward_of(model: nn.Module, run: Callable[[], object], choosing: Chooser | None) -> Forward:
    """What is seen of a model while something runs."""
    found: list[Forward] = []
    asked = None if choosing is None else lambda: choosing
    watch = Watch(model, found.append, on_begin=_as_they_are, choosing=asked)
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


def _as_they_are(beginning: Beginning) -> None:
    """Keep queries and output of each call as they are then: a model may go on in their memory."""
    beginning.keep(
        lambda call: replace(call, queries=call.queries.clone(), output=call.output.clone()), None
    )


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Inside, a pass may give modules other tensors; afterwards they have those of before.

    Some keep a recurrent state in an attribute, made anew at every step: tensors that are changed
    in place are not looked at.
    """
    before = [(one, _kept(vars(one)), _kept(one._buffers)) for one in model.modules()]
    try:
        yield
    finally:
        for module, plain, buffers in before:
            _put_back(vars(module), plain)
            _put_back(module._buffers, buffers)


def _kept(entries: dict[str, object] | dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: one for name, one in entries.items() if one is None or isinstance(one, Tensor)}


def _put_back(
    entries: dict[str, object] | dict[str, Tensor | None], before: dict[str, Tensor | None]
) -> None:
    for name, one in before.items():
        if entries.get(name) is not one:
            entries[name] = one
