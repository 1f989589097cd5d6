"""What went into a forward and came out of it, as far as names and shapes tell."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.parts import named as part_named
from kvtrace.record.parts import parts_of

UNKNOWN = -1
"""Stands where a row of ids has no more of them."""

_BESIDE = re.compile(r"mask|pos|offset|start|len|index|segment|type|label|target", re.IGNORECASE)
_NEVER = re.compile(r"mask|pos|offset|segment|type|label|layer|batch", re.IGNORECASE)
_LENGTH = re.compile(r"len(gth)?s?(_|$)", re.IGNORECASE)
_IDS = re.compile(r"^(input_?)?(ids|idx|tokens?|x|inputs?)$", re.IGNORECASE)
_HELD_IDS = re.compile(
    r"^((input|token|decoder_input)_?)?(ids|idx|tokens?|inputs?)$", re.IGNORECASE
)
_SPEAKS_OF_IDS = re.compile(
    r"tok|ids?(_|$)|idx|code|char|word|text|input|cap|tgt|trg|target|prev|^[xy]$", re.IGNORECASE
)
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_MORE_PLACES = 16
_KEEPS = re.compile(r"cache|past|kv|state|mem", re.IGNORECASE)
_SOURCE = re.compile(r"^(src|sources?|enc|encoder)(_|$)", re.IGNORECASE)
_TARGET = re.compile(r"^(tgt|trg|targets?|dec|decoder)(_(?!mask|pad|pos|len)|$)", re.IGNORECASE)


def tokens_in(arguments: Mapping[str, object]) -> tuple[str, Tensor] | None:
    """The argument that holds token ids, and the ids, [sequences, new].

    By name, else the first whole numbers of two dimensions, else of one, else a list of them. Where
    names leave none, `token_indexes` and `start_tokens` are ids after all. Numbers that count the
    rows of hidden features beside them are places, whatever their name. Then come three
    dimensions: several ids for one position, as in music models. Last come ids that one argument
    holds beside others, as a batch does: `batch.tokens`.
    """
    for name in ("decoder_input_ids", "input_ids"):
        found = arguments.get(name)
        if isinstance(found, Tensor):
            return name, found if found.dim() > 1 else found.reshape(1, -1)
    if not {"inputs_embeds", "decoder_inputs_embeds"}.isdisjoint(_given(arguments)):
        return None
    places = _places(arguments)
    arguments = {n: one for n, one in arguments.items() if n not in places}
    encodes = any(is_source(name, one) for name, one in arguments.items())
    others = {
        name: one
        for name, one in arguments.items()
        if not _BESIDE.search(name) or (encodes and _TARGET.match(name))
    }
    whole = {n: one for n, one in others.items() if isinstance(one, Tensor) and _whole(one)}
    # what is encoded stays; the text that grows is the decoder's
    whole = {n: one for n, one in whole.items() if not is_source(n, one)} or whole
    tables = {name: one for name, one in whole.items() if one.dim() == 2}
    rows = {name: one[None] for name, one in whole.items() if one.dim() == 1}
    listed = {name: ids for name, one in others.items() if (ids := _listed(name, one)) is not None}
    found = {**tables, **rows, **listed} or {
        name: one
        for name, one in arguments.items()
        if not (_NEVER.search(name) or says_length(name))
        and isinstance(one, Tensor)
        and one.dim() == 2
        and _whole(one)
    }
    codes = {name: one for name, one in whole.items() if one.dim() == 3}
    return next(iter((found or codes).items()), None) or _held(arguments)


def _held(arguments: Mapping[str, object]) -> tuple[str, Tensor] | None:
    """Ids that an argument holds under a name that ids have; none beside rows, nor in a cache."""
    if any(isinstance(one, Tensor) and one.dim() > 2 for one in arguments.values()):
        return None
    for name, value in arguments.items():
        if _KEEPS.search(name) or isinstance(value, Tensor):
            continue
        for part, one in parts_of(value).items():
            held = isinstance(part, str) and isinstance(one, Tensor) and _HELD_IDS.match(part)
            if held and isinstance(one, Tensor) and one.dim() in (1, 2) and _whole(one):
                return part_named(name, part), one if one.dim() == 2 else one[None]
    return None


def says_length(name: str) -> bool:
    """Whether an argument says how long texts are, by its name."""
    return bool(_LENGTH.search(name))


def is_source(name: str, value: object) -> bool:
    """Whether an argument is what an encoder reads, by its name: ids, or their mask."""
    return isinstance(value, Tensor) and not value.is_complex() and bool(_SOURCE.match(name))


def _given(arguments: Mapping[str, object]) -> set[str]:
    return {name for name, one in arguments.items() if isinstance(one, Tensor)}


def _listed(name: str, one: object) -> Tensor | None:
    """Ids in a Python list, rows of them in one, or a single one under a name that ids have."""
    if isinstance(one, list) and one and all(type(token) is int for token in one):
        return torch.tensor([one])
    if isinstance(one, list | tuple) and one and all(_row(part) for part in one):
        return pad_sequence(list(one), batch_first=True, padding_value=UNKNOWN)
    if _IDS.match(name) and (type(one) is int or (isinstance(one, Tensor) and one.dim() == 0)):
        whole = torch.as_tensor(one)
        return whole.reshape(1, 1) if _whole(whole) else None
    return None


def named(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    known: dict[int, Sequence[str]] | None = None,
) -> Mapping[str, object]:
    """All arguments of a call by name, those that were given by place first.

    Args:
        module: What is called.
        args: By place.
        kwargs: By name.
        known: What modules take, by their id, for whoever asks again and again.
    """
    if not args:
        return kwargs
    takes = None if known is None else known.get(id(module))
    if takes is None:
        takes = places_of(inspect.signature(module.forward).parameters)
        if known is not None:
            known[id(module)] = takes
    names = [name for name in takes if name not in kwargs]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def places_of(parameters: Mapping[str, inspect.Parameter]) -> tuple[str, ...]:
    """Names of what is given by place: `*args` is `args`, what follows in it `args[1]` and so on.

    Args:
        parameters: What is called takes.
    """
    star = next((name for name, one in parameters.items() if one.kind is one.VAR_POSITIONAL), None)
    if star is None:  # what stands for a forward takes by place what that takes by name alone
        return tuple(name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD)
    names = [name for name, one in parameters.items() if one.kind in _BY_PLACE]
    return (*names, star, *(f"{star}[{place}]" for place in range(1, _MORE_PLACES)))


def tokens_of(arguments: Mapping[str, object]) -> Tensor | None:
    """The ids among the arguments, [sequences, new]; None when embeddings are given."""
    found = tokens_in(arguments)
    return None if found is None else found[1]


def _row(part: object) -> bool:
    """Whether this is one sequence of ids, of those in a list."""
    return isinstance(part, Tensor) and part.dim() == 1 and _whole(part) and part.numel() > 0


def _places(arguments: Mapping[str, object]) -> set[str]:
    """Whole numbers that say where the rows of hidden features beside them stand.

    They come after the rows, for what ids are read beside comes after the ids, and they count: one
    for each row, every one by one more. Names that speak of ids are believed.
    """
    lengths, found = set[int](), set[str]()
    for name, one in arguments.items():
        if not isinstance(one, Tensor):
            continue
        if one.dim() == 3 and one.is_floating_point():
            lengths.add(one.shape[1])
        elif one.dim() in (1, 2) and one.shape[-1] in lengths and _whole(one):
            believed = _SPEAKS_OF_IDS.search(name) is not None
            found |= {name} if not believed and bool((one.diff() == 1).all()) else set()
    return found


def _whole(tensor: Tensor) -> bool:
    fractions = tensor.is_floating_point() or tensor.is_complex()
    return not fractions and tensor.dtype != torch.bool


def shape_of(tokens: Tensor | None, arguments: Mapping[str, object]) -> tuple[int, int]:
    """(sequences, new) of what came in."""
    if tokens is not None:
        return (1, tokens.shape[0]) if tokens.dim() == 1 else (tokens.shape[0], tokens.shape[1])
    for value in arguments.values():
        if isinstance(value, Tensor) and value.dim() == 3:
            return value.shape[0], value.shape[1]
    return 1, 0


def hidden_width(modules: Iterable[nn.Module]) -> int:
    """Features of a model's rows, where logits over its tokens are wider; 0: that is not known."""
    tables = [one for one in modules if isinstance(one, nn.Embedding)]
    table = max(tables, key=lambda one: one.num_embeddings, default=None)
    if table is None or table.num_embeddings <= table.embedding_dim:
        return 0
    return table.embedding_dim


def logits_of(result: Any, shape: tuple[int, int], hidden: int = 0) -> Tensor | None:
    """The logits among what a model returned, [sequences, rows, vocab].

    Args:
        result: A tensor, an object or mapping with `logits`, or a tuple or list with them.
        shape: (sequences, new) that went in.
        hidden: As many numbers a row, under no name, are no logits but the rows themselves.
    """
    found = getattr(result, "logits", None)
    if found is None and isinstance(result, Mapping):
        found = result.get("logits")
    if isinstance(result, Tensor) and result.shape[-1:] != (hidden,):
        found = result
    if found is None and isinstance(result, tuple | list):
        tensors = [part for part in result if isinstance(part, Tensor) and part.numel() > 1]
        tensors = [part for part in tensors if part.shape[-1:] != (hidden,)]
        # a loss stands before or after; past keys and values have more dimensions
        found = next((one for one in tensors if one.dim() == 3), None)
        found = next((one for one in tensors if one.dim() == 2), None) if found is None else found
    if not isinstance(found, Tensor) or not found.is_floating_point():
        return None
    sequences, new = shape
    if found.dim() == 2 and found.shape[0] == sequences and (sequences > 1 or new == 1):
        return found[:, None]
    if found.dim() in (1, 2) and sequences == 1:
        return found.reshape(1, -1, found.shape[-1])
    if tuple(found.shape[:2]) == (new, sequences) != shape and found.dim() == 3:
        return found.transpose(0, 1)
    return found if found.dim() == 3 else None


def fitted(
    tokens: Tensor | None,
    shape: tuple[int, int],
    calls: Sequence[AttentionCall],
    logits: Tensor | None,
    arguments: Mapping[str, object],
) -> tuple[Tensor | None, tuple[int, int]]:
    """Tokens and (sequences, new) as the attention saw them.

    A model may take several ids for one position, as the codebooks of music models, side by side
    in the batch or in a dimension more; the first of each stands for all. It may be given all
    tokens and take the last ones, those that its cache does not have; it attends to a row of each,
    and may put rows of its own in front. One that has logits for every token took them all, though
    it attends to them in blocks; not where each place attends once, to a row of every token: then
    it kept what came out of the earlier ones, too. Where a text goes on in an argument of its own,
    the last rows are no tokens of the first, and which they are is not known.
    """
    decoding = [call for call in calls if call.kind != "encoder"] or list(calls)
    if not decoding or any(_size(call) == shape for call in decoding):
        each = tokens is not None and tokens.dim() == 3 and tokens.shape[:2] == shape
        return tokens[..., 0] if tokens is not None and each else tokens, shape
    sequences, new = _size(decoding[0])
    if tokens is None:
        return None, (sequences, new)
    whole = logits is not None and logits.shape[:2] == tokens.shape == shape
    whole = whole and any(call.call or call.keys.shape[2] != shape[1] for call in decoding)
    if whole and sequences == shape[0] and new < shape[1]:
        return tokens, shape
    if tuple(tokens.shape) == (new, sequences):
        return tokens.t(), (sequences, new)
    rows = tokens.reshape(-1, tokens.shape[-1])
    if rows.shape[0] == sequences and decoding[0].keys.shape[2] >= rows.shape[1] > new:
        goes_on = _goes_on_in_another(tokens, arguments, decoding[0])
        return (None if goes_on else rows[:, -new:]), (sequences, new)
    fits = rows.shape[1] == new and not rows.shape[0] % sequences
    return (rows[:: rows.shape[0] // sequences] if fits else None), (sequences, new)


def _goes_on_in_another(
    tokens: Tensor, arguments: Mapping[str, object], call: AttentionCall
) -> bool:
    """Whether ids in another argument stand behind these: as many rows are seen as both have.

    One more row may begin the text.
    """
    sequences, count = tokens.shape[0], tokens.shape[-1]
    shown, rows = call.visible, call.keys.shape[2]
    rows = rows if shown is None else int(shown.expand(*shown.shape[:-1], rows).sum(-1).max())
    others = [
        one.shape[1]
        for name, one in arguments.items()
        if isinstance(one, Tensor) and one is not tokens
        if not _BESIDE.search(name) and not is_source(name, one)
        if one.dim() == 2 and _whole(one) and one.shape[0] == sequences
    ]
    return any(0 <= rows - count - other <= 1 for other in others)


def _size(call: AttentionCall) -> tuple[int, int]:
    return call.queries.shape[0], call.queries.shape[2]
