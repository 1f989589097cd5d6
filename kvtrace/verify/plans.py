"""The ways of driving a model in which caches break, beside decoding one prompt.

Each is short: it is there for the code path, not for the text. What a model does not offer is
said, not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.errors import RecordError
from kvtrace.models.quiet import quiet
from kvtrace.record.decode import Drive, Limits, Standard, decode
from kvtrace.record.driving import Driven
from kvtrace.record.driving.encoded import EncoderDecoder, is_encoder_decoder
from kvtrace.record.driving.ways.begins import resets
from kvtrace.verify.ways import WAYS

_AGAIN_LENGTH, _AGAIN_STEPS = 12, 2
_CHUNKS, _SINGLE, _FED = 3, 2, 40
_TITLES = {"again": "another prompt", "chunks": "chunked prefill"}
_BATCH_LENGTH, _BATCH_STEPS = 16, 3
_BEAM_LENGTH, _BEAMS, _BEAM_STEPS = 8, 3, 4


@dataclass(frozen=True, slots=True)
class Plan:
    """One way of driving.

    Attributes:
        way: Of `WAYS`.
        title: What it does, in a few words, for when there is no trace to say it.
        model: What is to be recorded: the model, or the part of it that is called.
        drive: Runs it, inside a recording; None: not possible.
        otherwise: Another way to drive it, where that raises.
        why_not: Why it is not possible.
        keeps: It may keep rows inside, and the model has no method that empties them.
    """

    way: str
    title: str
    model: nn.Module
    drive: Callable[[], object] | None
    otherwise: Callable[[], object] | None = None
    why_not: str = ""
    keeps: bool = False


Start = Callable[[Sequence[int], int], Driven]
"""How the model is called for a prompt (token ids) and a number of further tokens; each call
begins anew."""


def plans(
    model: nn.Module,
    tokens: Sequence[int],
    start: Start,
    *,
    others: Sequence[Sequence[int]] = (),
    ways: Sequence[str] | None = None,
) -> list[Plan]:
    """The ways that were asked for, in the order in which a failure explains the next.

    Args:
        model: Was decoded once before.
        tokens: Of that run: prompt and what followed.
        start: How it is called.
        others: Prompts of the caller's, for the batch.
        ways: Some of `WAYS`, asked for by name; None: all that the model is surely made for.
    """
    makers: dict[str, Callable[[], Plan]] = {
        "again": lambda: _again(model, tokens, start),
        "chunks": lambda: _chunks(model, tokens, start, asked=ways is not None),
        "padded": lambda: _padded(model, others or _batch(tokens)),
        "beams": lambda: _beams(model, tokens),
    }
    wanted = WAYS if ways is None else ways
    return [_made(way, model, makers[way]) for way in WAYS if way in wanted]


def _made(way: str, model: nn.Module, make: Callable[[], Plan]) -> Plan:
    """A plan; without a drive where no way to call the model is found."""
    try:
        return make()
    except RecordError as error:
        return Plan(way, _TITLES.get(way, way), model, None, why_not=str(error))


def _again(model: nn.Module, tokens: Sequence[int], start: Start) -> Plan:
    """Another prompt: rows of the first must not be seen any more."""
    first = list(tokens[:_AGAIN_LENGTH])
    other = first[::-1] if first != first[::-1] else [max(0, token - 1) for token in first]
    driven = start(other, _AGAIN_STEPS)
    limits = Limits(_AGAIN_STEPS)
    return Plan(
        "again",
        _TITLES["again"],
        driven.model,
        lambda: decode(driven.model, driven.prompt, drive=driven.drive, limits=limits),
        # a cache that is an argument begins with every text: then nothing inside may be left
        keeps=not resets(model) and not isinstance(driven.drive, Standard),
    )


def _chunks(model: nn.Module, tokens: Sequence[int], start: Start, *, asked: bool) -> Plan:
    """The same tokens again, the prompt in uneven chunks, the last ones singly.

    Many people's forwards take the whole prompt, then single tokens, and nothing else: calling
    them otherwise would find what is no fault.
    """
    title = _TITLES["chunks"]
    tokens = tokens[:_FED]
    if len(tokens) < _CHUNKS + _SINGLE:
        return Plan("chunks", title, model, None, why_not=f"{len(tokens)} tokens are too few")
    sizes = _sizes(len(tokens) - _SINGLE) + [1] * _SINGLE
    driven = start(tokens, 0)
    if not (asked or isinstance(driven.drive, Standard | EncoderDecoder)):
        why = "it may not be made for it; ask for `chunks` to try"
        return Plan("chunks", title, model, None, why_not=why)

    def feed(how: Drive) -> None:
        for end in accumulate(sizes):
            how.step(tokens[:end])

    plain = isinstance(driven.drive, Standard)
    # some build what hides a chunk's later tokens out of the mask that `generate` always gives
    told = (lambda: feed(Standard(model, masked=True))) if plain else None
    return Plan("chunks", title, driven.model, lambda: feed(driven.drive), told)


def _sizes(total: int) -> list[int]:
    """Chunks of different sizes: an index that is off by a chunk must show."""
    small = total // _CHUNKS
    more = min(1, total - 2 * small - 1)
    return [small, small + more, total - 2 * small - more]


def _batch(tokens: Sequence[int]) -> list[Sequence[int]]:
    """Two rows of different lengths."""
    length = min(len(tokens), _BATCH_LENGTH)
    row = tokens[:length]
    return [row, row[length // 2 :]]


def _padded(model: Any, prompts: Sequence[Sequence[int]]) -> Plan:
    """Prompts of unlike lengths in a batch, filled up at the left, an encoder's at the right."""
    right = is_encoder_decoder(model)
    title = f"{'right' if right else 'left'}-padded batch of {len(prompts)}"
    if not _generates(model):
        return Plan("padded", title, model, None, why_not="it has no generate")

    def drive() -> None:
        filler = _filler(model)
        width = max(map(len, prompts))
        rows = [_filled(row, width, filler, right) for row in prompts]
        mask = [_filled([1] * len(row), width, 0, right) for row in prompts]
        device = _device(model)
        given = torch.tensor(rows, device=device), torch.tensor(mask, device=device)
        _generate(model, *given, _BATCH_STEPS)

    return Plan("padded", title, model, drive)


def _filled(row: Sequence[int], width: int, filler: int, right: bool) -> list[int]:
    """A row of some width."""
    more = [filler] * (width - len(row))
    return [*row, *more] if right else [*more, *row]


def _beams(model: Any, tokens: Sequence[int]) -> Plan:
    """Beam search: rows of the cache change places."""
    title = f"{_BEAMS} beams"
    if not _generates(model):
        return Plan("beams", title, model, None, why_not="it has no generate")

    def drive() -> None:
        ids = torch.tensor([list(tokens[:_BEAM_LENGTH])], device=_device(model))
        _generate(model, ids, torch.ones_like(ids), _BEAM_STEPS, num_beams=_BEAMS)

    return Plan("beams", title, model, drive)


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
    """Whether it has the generate of transformers, and that goes on from token ids."""
    able = getattr(model, "can_generate", None)
    return callable(able) and bool(able())


def _filler(model: Any) -> int:
    """The id of the padding, or any: nobody sees it."""
    found = getattr(getattr(model, "config", None), "pad_token_id", None)
    return found if isinstance(found, int) and found >= 0 else 0


def _device(model: nn.Module) -> torch.device:
    return next((one.device for one in model.parameters()), torch.device("cpu"))
