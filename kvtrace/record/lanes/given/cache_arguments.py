"""What a model that takes its cache along is called with, to compute whole token paths again."""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kvtrace.record.lanes.given.codes import CODES
from kvtrace.record.lanes.given.embedded import NAME, joined
from kvtrace.record.lanes.given.first_call import FirstCall
from kvtrace.record.lanes.given.tables import given_table, longer, without
from kvtrace.record.parts import mapped

if TYPE_CHECKING:
    from kvtrace.record.lanes.passes.batch import Batch

DECODER = "decoder_input_ids"
"""The ids that a decoder is fed, where an encoder reads others."""


def arguments_for(model: nn.Module, batch: Batch, device: torch.device | None) -> dict[str, object]:
    """What the model is called with; only names that its forward takes."""
    names = inspect.signature(model.forward).parameters
    if device is None:
        there = (one.device for one in model.parameters() if not one.is_meta)
        device = next(there, torch.device("cpu"))
    decoder = DECODER in names
    arguments = {k: v for k, v in without(batch.extra).items() if v is not None}
    first = DECODER if decoder else "input_ids" if "input_ids" in names else next(iter(names))
    ids, given_rows = filled(batch, device), batch.extra.get(NAME)
    if isinstance(given_rows, Tensor):
        arguments[NAME] = joined(model, ids, given_rows)
    else:
        arguments[first] = arguments.pop(CODES, ids)
    if decoder and "encoder_outputs" in arguments and "input_ids" in names:
        # nothing reads them again, but FSMT hides later tokens only beside ids for its encoder
        arguments.setdefault("input_ids", ids)
    if any(path.padding for path in batch.paths):
        padded = padded_for(batch, device, names)
        if decoder:
            padded["decoder_attention_mask"] = padded.pop("attention_mask")
        arguments |= {k: v for k, v in padded.items() if k not in batch.extra}
    table = given_table(batch.extra)
    if table is not None:
        pads = [path.padding for path in batch.paths]
        arguments["attention_mask"] = longer(table.to(device), batch.rows, pads)
    given = arguments.pop("position_ids", None)
    if isinstance(given, Tensor) and "position_ids" in names:
        arguments["position_ids"] = _going_on(given, batch, device)
    if "use_cache" in names:
        arguments["use_cache"] = False
    if batch.keep is not None and "logits_to_keep" in names:
        arguments["logits_to_keep"] = _kept_at_end(batch.keep, batch.rows, device)
    return arguments


def _kept_at_end(keep: Sequence[int], rows: int, device: torch.device) -> int | Tensor:
    """Rows whose logits are wanted: how many of the last ones, or, with gaps, which.

    A model with fewer rows of output than tokens has no row of such a number: on a GPU asking for
    one ends the whole program, while the last ones are only as many as there are.
    """
    if len(keep) == keep[-1] - keep[0] + 1:
        return rows - keep[0]
    return torch.tensor(list(keep), device=device)


def read_beside(ids: str, batch: Batch, dtype: torch.dtype | None) -> dict[str, object]:
    """What an encoder said or reads to these paths: it is another thing for another text.

    Args:
        ids: Name of the argument with the paths' ids.
        batch: The paths, and what goes with them.
        dtype: Of its floating tensors; None: as they are.
    """
    if ids != DECODER:
        return {}
    known = {name: one for name, one in batch.extra.items() if name != CODES and one is not None}
    # what a loop has at hand is no argument, and is called `local cache`
    given = {name: one for name, one in known.items() if name.isidentifier()}
    return given if dtype is None else {name: cast(one, dtype) for name, one in given.items()}


def _going_on(given: Tensor, batch: Batch, device: torch.device) -> Tensor:
    """Positions of whole paths, counted on from the position that each first token was given.

    Where a first chunk is padding alone, tokens are counted from 0. Positions of several axes
    (time, height, width) stay as they were given, and go on from the last one; so do those of
    several texts that are packed in one row, each counted from 0.
    """
    if given.dim() == 3 or _packed(given, batch):
        known = given[..., : batch.rows].to(device)
        more = torch.arange(1, 1 + batch.rows - known.shape[-1], device=device)
        known = known.expand(*known.shape[:-2], len(batch.paths), -1)
        return torch.cat([known, known[..., -1:] + more], dim=-1)
    rows = given.expand(len(batch.paths), -1) if given.shape[0] == 1 else given
    pads = [path.padding for path in batch.paths]
    first = [int(row[pad]) if pad < len(row) else 0 for row, pad in zip(rows, pads, strict=True)]
    start = torch.tensor([one - pad for one, pad in zip(first, pads, strict=True)], device=device)
    lowest = torch.tensor(first, device=device)[:, None]
    return torch.maximum(torch.arange(batch.rows, device=device)[None] + start[:, None], lowest)


def _packed(given: Tensor, batch: Batch) -> bool:
    """Whether a row that is not padded counts from 0 again: another text begins there."""
    if any(path.padding for path in batch.paths):
        return False
    return bool(((given[:, 1:] == 0) & (given[:, :-1] > 0)).any())


def beside_ids(
    call: FirstCall, extra: Mapping[str, object], kind: torch.dtype | None
) -> dict[str, object]:
    """What stands in the place of ids in a call: rows, or several ids for a position.

    Args:
        call: That is made again.
        extra: Arguments of whole paths.
        kind: Rows are taken in this dtype; None: as they are.
    """
    given = extra.get(NAME)
    if call.rows and isinstance(given, Tensor):
        return call.filled(given if kind is None else given.to(kind))
    return {call.ids: extra[CODES]} if CODES in extra else {}


def cast(value: Any, dtype: torch.dtype) -> Any:
    """An argument with all its floating tensors in another dtype."""
    return mapped(value, lambda one: one.to(dtype) if one.is_floating_point() else one)


def cast_all(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every floating parameter and buffer in another dtype, by name; the model keeps its own."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: one.detach().to(dtype) for name, one in named if one.is_floating_point()}


def filled(batch: Batch, device: torch.device) -> Tensor:
    """Token ids, [paths, rows]; shorter paths go on with zeros."""
    width = batch.rows
    filled = [path.tokens + [0] * (width - len(path.tokens)) for path in batch.paths]
    return torch.tensor(filled, device=device)


def padded_for(batch: Batch, device: torch.device, names: Container[str]) -> dict[str, Tensor]:
    """The mask of padding at the left, and positions where they are asked for."""
    padding = torch.tensor([path.padding for path in batch.paths], device=device)
    places = torch.arange(batch.rows, device=device)[None] - padding[:, None]
    found = {"attention_mask": (places >= 0).long()}
    if "position_ids" in names:
        found["position_ids"] = places.clamp(min=0)
    return found
