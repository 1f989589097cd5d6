"""A forward without a cache over whole token paths: the other lane's tensors.

Called with the tokens alone (and a mask where there is padding), never with what the cached run
passed along its cache, so that it shares none of that code. The model is as it was afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kvtrace.record.forward import Forward
from kvtrace.record.lanes.paths import Path
from kvtrace.record.watch import Watch

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


def recompute(model: nn.Module, batch: Batch, *, dtype: str | None = None) -> Forward:
    """The tensors of a forward over a batch of paths, no cache.

    Args:
        model: The watched model.
        batch: What to run it over.
        dtype: Parameters and buffers are taken in this dtype; None: as they are.

    Raises:
        CannotRecomputeError: It failed, or returned nothing to compare.
    """
    found: list[Forward] = []
    arguments = _arguments(model, batch)
    with _quietly(), Watch(model, found.append):
        try:
            if dtype is None:
                model(**arguments)
            else:
                functional_call(model, _cast(model, DTYPES[dtype]), (), arguments)
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise CannotRecomputeError(reason) from error
    forwards = [one for one in found if one.part == "model"]
    if not forwards:
        raise CannotRecomputeError("its forward was not seen")
    return forwards[-1]


@contextmanager
def _quietly() -> Iterator[None]:
    """No gradients, and the caller's random numbers untouched."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


def _arguments(model: nn.Module, batch: Batch) -> dict[str, object]:
    """What the model is called with; only names that its forward takes."""
    names = inspect.signature(model.forward).parameters
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    width = batch.rows
    filled = [path.tokens + [0] * (width - len(path.tokens)) for path in batch.paths]
    decoder = "decoder_input_ids" in names
    arguments: dict[str, object] = dict(batch.extra)
    first = (
        "decoder_input_ids"
        if decoder
        else "input_ids"
        if "input_ids" in names
        else next(iter(names))
    )
    arguments[first] = torch.tensor(filled, device=device)
    padding = torch.tensor([path.padding for path in batch.paths], device=device)
    if padding.any():
        visible = torch.arange(width, device=device)[None] >= padding[:, None]
        arguments["decoder_attention_mask" if decoder else "attention_mask"] = visible.long()
        if "position_ids" in names:
            places = torch.arange(width, device=device)[None] - padding[:, None]
            arguments["position_ids"] = places.clamp(min=0)
    if "use_cache" in names:
        arguments["use_cache"] = False
    if batch.keep is not None and "logits_to_keep" in names:
        arguments["logits_to_keep"] = torch.tensor(list(batch.keep), device=device)
    return arguments


def _cast(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every floating parameter and buffer in another dtype, by name; the model keeps its own."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: one.detach().to(dtype) for name, one in named if one.is_floating_point()}
