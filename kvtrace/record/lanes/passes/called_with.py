"""What a copy is called with, in each of the ways in which it may be called again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.lanes.given.cache_arguments import beside_ids, filled, padded_for, read_beside
from kvtrace.record.lanes.given.embedded import LED
from kvtrace.record.lanes.given.extend import POSITION
from kvtrace.record.lanes.given.first_call import FirstCall
from kvtrace.record.lanes.given.of_text import of_text
from kvtrace.record.lanes.given.seen import Made
from kvtrace.record.lanes.given.told import Told, rest
from kvtrace.record.lanes.passes.batch import Batch, CannotRecomputeError

Way = Callable[[FirstCall, Tensor], dict[str, object]]

_LIKE_FIRST = FirstCall.replayed
_WAYS: dict[str, Way] = {"bare": FirstCall.bare, "replayed": _LIKE_FIRST, "told": _LIKE_FIRST}
_WAYS |= {"beside": _LIKE_FIRST, "unswitched": FirstCall.unswitched}

TELLING = ("told", "beside")
"""Ways in which a call is given what the steps were."""


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
    ids = call.held
    device = ids.device if isinstance(ids, Tensor) else torch.device("cpu")
    tokens = filled(batch, device).to(ids.dtype if isinstance(ids, Tensor) else torch.long)
    if not call.rows:  # rows that it was given are all there are
        tokens = call.given(tokens, batch.extra.get(LED))
    hides = _hides(call)
    call = replace(call, paths=_made(call, batch, beside=hides is not None))
    told = steps.of(batch.paths, call) if name in TELLING else {}
    arguments = told | _WAYS[name](rest(call, told), tokens)
    stays = steps.of_prompt(batch.paths[0]) if len(batch.paths) == 1 else {}
    arguments |= {name: one for name, one in stays.items() if type(arguments.get(name)) is int}
    arguments |= _moved_on(call, batch) | beside_ids(call, batch.extra, kind)
    arguments |= read_beside(call.ids, batch, kind) | of_text(call, arguments, batch, kind)
    like_first = _WAYS[name] is _LIKE_FIRST
    # nor is a later text without padding called as a first one that had some
    other = call.tables_hide and (not like_first or any(path.root for path in batch.paths))
    if other or any(path.padding for path in batch.paths):
        tables = hides is None and like_first and bool(call.seen)
        arguments |= _hiding(call, batch, device, hides, tables=tables)
    elif batch.paths[0].root == 0:
        arguments |= _unplaced(call, tokens, arguments)
    return tokens, arguments


def _moved_on(call: FirstCall, batch: Batch) -> dict[str, object]:
    """Where a window over a text begins, as its step was told, where it moved on by just that."""
    begins = {path.first if path.slid else 0 for path in batch.paths}
    return {
        name: one
        for name, one in batch.extra.items()
        if type(one) is int and one and {one} == begins
        if name in call.parameters and POSITION.search(name)
    }


def _unplaced(
    call: FirstCall, tokens: Tensor, arguments: Mapping[str, object]
) -> dict[str, object]:
    """The mask that hid padding at first, where it hid other rows than those of known places.

    Of what each token is made of, say: three rows for every step of an agent.

    Args:
        call: The first one.
        tokens: Of the paths, [paths, rows].
        arguments: What they are called with so far.
    """
    mask = call.arguments.get(call.padding or "")
    if not isinstance(mask, Tensor) or call.padding in arguments or bool((mask != 0).all()):
        return {}
    if mask.shape[0] not in (1, tokens.shape[0]):
        raise CannotRecomputeError(f"`{call.padding}` hides rows whose places are not known")
    return {str(call.padding): call.longer(str(call.padding), tokens)}


def _made(call: FirstCall, batch: Batch, *, beside: bool) -> tuple[Made, ...]:
    """What tables of queries and keys are made for.

    Args:
        call: The first one: of its own text, the tables say themselves what is padding.
        batch: The paths.
        beside: Something else may say it.
    """
    elsewhere = beside and not call.tables_hide
    pads = (0 if elsewhere else None if one.root == 0 else one.padding for one in batch.paths)
    return tuple(Made(one.row, pad) for one, pad in zip(batch.paths, pads, strict=True))


def _hides(call: FirstCall) -> str | None:
    """The argument that says of each token whether it is padding; None: there is none."""
    # what was passed is taken, also by a forward that names only some and takes **the rest
    known = "attention_mask" in call.parameters or "attention_mask" in call.arguments
    return "attention_mask" if known and "attention_mask" not in call.seen else call.padding


def _hiding(
    call: FirstCall, batch: Batch, device: torch.device, hides: str | None, *, tables: bool
) -> dict[str, Tensor]:
    """Arguments that hide the padding of paths, and positions that do not count it.

    Args:
        call: The first one.
        batch: Whose padding.
        device: Of the tokens.
        hides: The argument that does; None: none.
        tables: Tables of queries and keys hide it already.

    Raises:
        CannotRecomputeError: None of those that it takes does.
    """
    if hides is None and not tables:
        raise CannotRecomputeError("it has padding at the left and takes no attention_mask")
    known = dict.fromkeys((*call.parameters, *call.arguments))
    if call.arguments.get("position_ids") is None:
        known.pop("position_ids", None)  # the model counts for itself, padding included
    padded = padded_for(batch, device, known)
    mask = padded.pop("attention_mask")
    if hides is None:
        return padded
    given = call.arguments.get(hides)
    if isinstance(given, Tensor) and given.dim() == mask.dim():
        mask = mask.to(given.dtype)
    return padded | {hides: mask}
