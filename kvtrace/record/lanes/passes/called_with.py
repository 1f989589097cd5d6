"""What a copy is called with, in each of the ways in which it may be called again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kvtrace.record.lanes.given.cache_arguments import beside_ids, filled, padded_for, read_beside
from kvtrace.record.lanes.given.extend import FirstCall
from kvtrace.record.lanes.given.of_text import of_text
from kvtrace.record.lanes.given.told import Told, rest
from kvtrace.record.lanes.passes.batch import Batch, CannotRecomputeError

Way = Callable[[FirstCall, Tensor], dict[str, object]]

_LIKE_FIRST = FirstCall.replayed
_WAYS: dict[str, Way] = {"bare": FirstCall.bare, "replayed": _LIKE_FIRST, "told": _LIKE_FIRST}
_WAYS |= {"beside": _LIKE_FIRST, "unswitched": FirstCall.unswitched}


def called_with(
    name: str, call: FirstCall, batch: Batch, steps: Told, kind: torch.dtype | None
) -> tuple[Tensor, dict[str, object]]:
    """The tokens and all arguments, by name.

    Args:
        name: Of the way.
        call: The first one, of the copy.
        batch: Whose tokens.
        steps: What the steps were given besides tokens.
        kind: Parameters are taken in this dtype; None: as they are.

    Raises:
        CannotRecomputeError: Its padding can't be hidden.
    """
    ids = call.arguments[call.ids]
    device = ids.device if isinstance(ids, Tensor) else torch.device("cpu")
    tokens = filled(batch, device).to(ids.dtype if isinstance(ids, Tensor) else torch.long)
    tokens = call.given(tokens, [path.row for path in batch.paths])
    told = steps.of(batch.paths, call) if name in ("told", "beside") else {}
    arguments = told | _WAYS[name](rest(call, told), tokens)
    arguments |= beside_ids(call, batch.extra, kind)
    arguments |= read_beside(call.ids, batch, kind) | of_text(call, arguments, batch, kind)
    if any(path.padding for path in batch.paths):
        arguments |= _hiding(call, batch, device)
    return tokens, arguments


def _hiding(call: FirstCall, batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Arguments that hide the padding of paths.

    Raises:
        CannotRecomputeError: None of those that it takes does.
    """
    # what was passed is taken, also by a forward that names only some and takes **the rest
    known = dict.fromkeys((*call.parameters, *call.arguments))
    hides = "attention_mask" if "attention_mask" in known else call.padding
    if hides is None:
        raise CannotRecomputeError("it has padding at the left and takes no attention_mask")
    if call.arguments.get("position_ids") is None:
        known.pop("position_ids", None)  # the model counts for itself, padding included
    padded, given = padded_for(batch, device, known), call.arguments.get(hides)
    mask = padded.pop("attention_mask")
    if isinstance(given, Tensor) and given.dim() == mask.dim():
        mask = mask.to(given.dtype)
    return padded | {hides: mask}
