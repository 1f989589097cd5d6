"""Torch's fused layers take their fast path, as they would unwatched.

Their rows are nowhere to be seen; where one ran, the module is run again unfused, and what that
shows counts if it makes the same output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.capture.tokens.inputs import named
from kvtrace.record.flow.calls.listen import Listening
from kvtrace.record.flow.calls.prove import largest_finite
from kvtrace.record.flow.modes.modules import Frame
from kvtrace.record.modes import FUNCTION_MODES

FAST_PATHS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)

_STEPS = 8
"""Roundings of the largest number by which two kernels may differ; measured: 2, of one layer."""


@dataclass(slots=True)
class FastPaths:
    """Runs torch's fused layers, and learns what happened in them.

    Attributes:
        listening: Knows what was refused, and takes what is seen.
    """

    listening: Listening
    _unfusing: bool = False

    def run(self, frame: Frame, run: Callable[[], Any]) -> Any:
        """Run a forward of one of them, and take what running it again shows."""
        if self._unfusing:
            return run()
        listening = self.listening
        with _has_torch_function(_overridden):
            out = run()
        if listening.refused is not frame:
            return out
        listening.refused = None
        with listening.harmless():
            self._unfused(frame, out)
        return out

    def _unfused(self, frame: Frame, out: Any) -> None:
        """Run a module again without its fused kernel, and take what that shows."""
        listening = self.listening
        self._unfusing = True
        try:
            with (
                listening.outlet.rehearsal() as calls,
                torch.no_grad(),
                _has_torch_function(_always),
            ):
                again = frame.forward()
        finally:
            self._unfusing = False
        first, second = (_shown(frame, x[0] if isinstance(x, tuple) else x) for x in (out, again))
        if _same_result(first, second):
            listening.notes[
                f"{frame.path}: a fused kernel hides its rows; calculated again without it"
            ] = None
            for call in calls:
                listening.outlet.sink(call)
        else:
            listening.reasons[(frame.path, "fused kernel")] = "run unfused, it gives another result"


def _shown(frame: Frame, rows: Tensor) -> Tensor:
    """Rows that a module made, without those that its ragged kernel left out: the padding."""
    if not isinstance(frame.module, nn.TransformerEncoder):
        return rows
    padding = named(frame.module, *frame.arguments).get("src_key_padding_mask")
    return rows if padding is None else rows[padding == 0]


def _same_result(first: Tensor, second: Tensor) -> bool:
    """Whether two kernels made the same of the same, but for the rounding of their type."""
    # what adds to little was rounded when it was large still
    rounded = _STEPS * torch.finfo(first.dtype).eps * largest_finite(first)
    return torch.allclose(first, second, rtol=1e-3, atol=max(1e-4, rounded))


@contextlib.contextmanager
def _has_torch_function(answer: Callable[[Any], bool]) -> Iterator[None]:
    """Another answer to what torch's fused layers ask before they take their fast path."""
    original = torch.overrides.has_torch_function
    torch.overrides.has_torch_function = answer  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.overrides.has_torch_function = original


def _always(_: Any) -> bool:
    """What is said of any tensors where no fused kernel is to be taken."""
    return True


def _overridden(tensors: Any) -> bool:
    """Whether a tensor subclass, or a mode that is not ours, wants to see the call."""
    return FUNCTION_MODES.is_foreign or any(
        isinstance(x, Tensor) and type(x) not in (Tensor, nn.Parameter) for x in tensors
    )
