"""The ways of driving a model in which caches break, beside decoding one prompt.

Each is short: it is there for the code path, not for the text. What a model does not offer is
said, not tried.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.models.quiet import quiet
from kvtrace.verify.ways import WAYS

_AGAIN_LENGTH, _AGAIN_STEPS = 12, 3
_CHUNKS, _SINGLE = 3, 2
_BATCH_STEPS, _BEAMS, _BEAM_STEPS = 3, 3, 4


@dataclass(frozen=True, slots=True)
class Plan:
    """One way of driving.

    Attributes:
        way: Of `WAYS`.
        title: What it does, in a few words, for when there is no trace to say it.
        drive: Runs the model, inside a recording; None: not possible.
        why_not: Why it is not possible.
    """

    way: str
    title: str
    drive: Callable[[], object] | None
    why_not: str = ""


Decode = Callable[[Sequence[int], int], object]
"""Decodes a prompt (token ids) for a number of tokens, the way the model wants it."""


def plans(
    model: nn.Module,
    tokens: Sequence[int],
    decode: Decode,
    *,
    others: Sequence[Sequence[int]] = (),
    ways: Sequence[str] = WAYS,
) -> list[Plan]:
    """The ways that were asked for, in the order in which a failure explains the next.

    Args:
        model: Was decoded once before.
        tokens: Of that run: prompt and what followed.
        decode: Decodes one prompt.
        others: Prompts of the caller's, for the batch.
        ways: Some of `WAYS`.
    """
    makers: dict[str, Callable[[], Plan]] = {
        "again": lambda: _again(model, tokens, decode),
        "chunks": lambda: _chunks(model, tokens),
        "padded": lambda: _padded(model, others or _batch(tokens)),
        "beams": lambda: _beams(model, tokens),
    }
    return [makers[way]() for way in WAYS if way in ways]


def _again(model: nn.Module, tokens: Sequence[int], decode: Decode) -> Plan:
    """Another prompt: rows of the first must not be seen any more."""
    first = list(tokens[:_AGAIN_LENGTH])
    other = first[::-1] if first != first[::-1] else [max(0, token - 1) for token in first]
    return Plan("again", "another prompt", lambda: decode(other, _AGAIN_STEPS))


def _chunks(model: nn.Module, tokens: Sequence[int]) -> Plan:
    """The same tokens again, the prompt in uneven chunks, the last ones singly."""
    title = "chunked prefill"
    if not _takes(model, "past_key_values"):
        return Plan("chunks", title, None, "its forward takes no past_key_values")
    if len(tokens) < _CHUNKS + _SINGLE:
        return Plan("chunks", title, None, f"{len(tokens)} tokens are too few")
    sizes = _sizes(len(tokens) - _SINGLE) + [1] * _SINGLE
    return Plan("chunks", title, lambda: _feed(model, tokens, sizes))


def _sizes(total: int) -> list[int]:
    """Chunks of different sizes: an index that is off by a chunk must show."""
    small = total // _CHUNKS
    more = min(1, total - 2 * small - 1)
    return [small, small + more, total - 2 * small - more]


def _feed(model: Any, tokens: Sequence[int], sizes: Sequence[int]) -> None:
    cache, start = None, 0
    for size in sizes:
        ids = torch.tensor([list(tokens[start : start + size])], device=_device(model))
        with torch.no_grad():
            result = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = getattr(result, "past_key_values", None)
        if cache is None:
            raise ValueError("its forward returned no past_key_values")
        start += size


def _batch(tokens: Sequence[int]) -> list[Sequence[int]]:
    """Two rows of different lengths."""
    length = min(len(tokens), 2 * _AGAIN_LENGTH)
    row = tokens[:length]
    return [row, row[length // 2 :]]


def _padded(model: Any, prompts: Sequence[Sequence[int]]) -> Plan:
    """Prompts of different lengths in one batch, filled up at the left."""
    title = f"left-padded batch of {len(prompts)}"
    if not _generates(model):
        return Plan("padded", title, None, "it has no generate")

    def drive() -> None:
        filler = _filler(model)
        width = max(map(len, prompts))
        rows = [[filler] * (width - len(row)) + list(row) for row in prompts]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in prompts]
        device = _device(model)
        given = torch.tensor(rows, device=device), torch.tensor(mask, device=device)
        _generate(model, *given, _BATCH_STEPS)

    return Plan("padded", title, drive)


def _beams(model: Any, tokens: Sequence[int]) -> Plan:
    """Beam search: rows of the cache change places."""
    title = f"{_BEAMS} beams"
    if not _generates(model):
        return Plan("beams", title, None, "it has no generate")

    def drive() -> None:
        ids = torch.tensor([list(tokens[: 2 * _AGAIN_LENGTH])], device=_device(model))
        _generate(model, ids, torch.ones_like(ids), _BEAM_STEPS, num_beams=_BEAMS)

    return Plan("beams", title, drive)


def _generate(model: Any, ids: Tensor, mask: Tensor, steps: int, **more: object) -> None:
    with quiet(), torch.no_grad():
        model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            pad_token_id=_filler(model),
            **more,
        )


def _generates(model: Any) -> bool:
    """Whether it is a decoder with the generate of transformers."""
    able = getattr(model, "can_generate", None)
    config = getattr(model, "config", None)
    if not callable(able) or getattr(config, "is_encoder_decoder", False):
        return False
    return bool(able())


def _filler(model: Any) -> int:
    """The id of the padding, or any: nobody sees it."""
    found = getattr(getattr(model, "config", None), "pad_token_id", None)
    return found if isinstance(found, int) and found >= 0 else 0


def _takes(model: nn.Module, name: str) -> bool:
    try:
        return name in inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return False


def _device(model: nn.Module) -> torch.device:
    return next((one.device for one in model.parameters()), torch.device("cpu"))
