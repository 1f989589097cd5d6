"""Why rows come out otherwise in any call, without any cache: drawn numbers, or coarse rounding.

Dropout that is left on, or noise, makes every lane another one: then nothing that differs tells of
a cache. Activations that are quantised on the way do the like: a number between two of their steps
falls to one of them or the other, by the rounding of a matrix product in another shape. The same
tokens tell, with parameters that differ in their last bits. Asked once lanes part.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kvtrace.record.capture.forward import Forward
from kvtrace.record.chance import OTHER_SEED, own_chance
from kvtrace.record.flow.calls.prove import HALF
from kvtrace.record.lanes.limits.apart import pairs, relative
from kvtrace.record.lanes.passes.batch import Batch, CannotRecomputeError
from kvtrace.record.lanes.passes.recompute import Recomputer
from kvtrace.trace import NOT_REPEATABLE, ROUNDS_INSIDE, Note

_BITS = 8.0
"""Times the step of a dtype, by which parameters are moved at most: as far as sums round."""

_SHARE = 0.25
"""Of how far rows moved: so far, at least, the last bits move them too."""


def varies(
    again: Recomputer, batch: Batch, forward: Forward, dtype: str | None = None
) -> Note | None:
    """A note, where the same call comes out otherwise with other random numbers.

    Args:
        again: Computes the tokens again.
        batch: What was run.
        forward: What came out.
        dtype: In which it was run; None: as the model is.
    """
    try:
        with own_chance(again.model):
            torch.manual_seed(OTHER_SEED)
            other = again.run(batch, dtype=dtype)
    except CannotRecomputeError:
        return None
    for call, there in pairs(forward.calls, other.calls):
        far = relative(call.output, there.output)
        # the same shapes: not even the last bits differ
        if far > torch.finfo(torch.float32).eps * 16:
            why = "something draws random numbers"
            if again.model.training:
                why = "the model is in training mode, where dropout is on: call model.eval()"
            return Note(
                "note",
                f"{NOT_REPEATABLE} two calls over the same tokens, neither with a cache, differ "
                f"by {far:.1e} of the largest output of {call.module or 'the model'}; {why}",
            )
    return None


def rounds_inside(
    again: Recomputer,
    batch: Batch,
    least: float,
    *,
    moved: float = 0.0,
    plain: Forward | None,
) -> Note | None:
    """A note, where the last bits alone move rows beyond what is rounding.

    Args:
        again: Computes the tokens again.
        batch: What was run.
        least: Less is rounding, relative to the largest number.
        moved: How far rows moved that should not.
        plain: What came out, in the model's own dtype; None: it was not run in that.
    """
    if any(one.dtype in HALF for one in again.model.parameters()):
        return None  # their last bits are no small change
    try:
        plain = again.run(batch) if plain is None else plain
        other = _nudged(again.model, lambda: again.run(batch))
    except CannotRecomputeError:
        return None
    far = _apart(plain, other)
    if far <= max(least, _SHARE * moved):
        return None
    return Note(
        "note",
        f"{ROUNDS_INSIDE} {far:.1e} of the largest number is how far rows move when parameters "
        "change in their last bits, without any cache; something keeps few values on the way, as "
        "quantised activations do",
    )


class _Around(nn.Module):
    """Something that is run while the parameters of a model are others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], Forward]) -> Forward:
        return run()


def _nudged(model: nn.Module, run: Callable[[], Forward]) -> Forward:
    """What comes out while parameters differ in their last bits; the model's own stay as they are.

    Those that are no plain numbers (packed, quantised) are left alone.
    """
    others = {
        f"model.{name}": _last_bits(one.detach())
        for name, one in model.named_parameters()
        if type(one.data) is Tensor and one.is_floating_point() and not one.is_meta
    }
    found: Forward = functional_call(_Around(model), others, (run,))
    return found


def _last_bits(one: Tensor) -> Tensor:
    drawn = torch.Generator(one.device).manual_seed(0)
    noise = torch.rand(one.shape, generator=drawn, device=one.device, dtype=torch.float32)
    return one * (1 + _BITS * torch.finfo(one.dtype).eps * (2 * noise - 1)).to(one.dtype)


def _apart(one: Forward, other: Forward) -> float:
    """The largest difference of any attention's queries, values or output."""
    far = 0.0
    for call, there in pairs(one.calls, other.calls):
        for name in ("queries", "values", "output"):
            far = max(far, relative(getattr(call, name), getattr(there, name)))
    return far
