"""The ways of driving a model in which caches break, beside decoding one prompt.

Each is short: it is there for the code path, not for the text. What a model does not offer is
said, not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from types import ModuleType
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn

from kvtrace.errors import RecordError
from kvtrace.models.quiet import quiet
from kvtrace.record.decode import Drive, Limits, Standard, decode
from kvtrace.record.driving import Driven
from kvtrace.record.driving.adapter import beside_model
from kvtrace.record.driving.encoded import EncoderDecoder, is_encoder_decoder
from kvtrace.record.driving.ways.calls import Calls
from kvtrace.record.driving.ways.inside import resets
from kvtrace.record.processes.local import device_of
from kvtrace.verify.own_loops import own_loops, run_loops
from kvtrace.verify.ways import WAYS

_AGAIN_LENGTH, _AGAIN_STEPS = 12, 2
_OWN_LENGTH, _OWN_STEPS = 8, 4
_CHUNKS, _SINGLE, _FED = 3, 2, 40
_TITLES = {"again": "another prompt", "chunks": "chunked prefill"}
_BATCH_LENGTH, _BATCH_STEPS = 16, 3
_BEAM_LENGTH, _BEAMS, _BEAM_STEPS = 8, 3, 4


class Plan(Struct, frozen=True):
    """One way of driving.

    Attributes:
        way: Of `WAYS`.
        title: What it does, in a few words, for when there is no trace to say it.
        model: What is to be recorded: the model, or the part of it that is called.
        drive: Runs it, inside a recording; None: not possible.
        otherwise: Another way to drive it, where that raises.
        why_not: Why it is not possible.
        keeps: It may keep rows inside, and the model has no method that empties them.
        presumed: Nothing shows that the model was written to be driven so.
        prompt: Token ids that each text begins with, where somebody else's loop feeds them.
    """

    way: str
    title: str
    model: nn.Module
    drive: Callable[[], object] | None
    otherwise: Callable[[], object] | None = None
    why_not: str = ""
    keeps: bool = False
    presumed: bool = False
    prompt: tuple[int, ...] = ()


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
    script: ModuleType | None = None,
    alone: int = 0,
) -> list[Plan]:
    """The ways that were asked for, in the order in which a failure explains the next.

    Args:
        model: Was decoded once before.
        tokens: Of that run: prompt and what followed.
        start: How it is called.
        others: Prompts of the caller's, for the batch.
        ways: Some of `WAYS`, asked for by name; None: all.
        script: The user's file, where they gave one.
        alone: Tokens of its prompt, where that run kept no rows: then its own loops are all there
            is to check, and are run on as many tokens.
    """
    if not tokens:
        why = "which tokens it was fed is not known"
        named = WAYS if ways is None else [way for way in WAYS if way in ways]
        return [Plan(way, _TITLES.get(way, way), model, None, why_not=why) for way in named]
    makers: dict[str, Callable[[], Plan]] = {
        "again": lambda: _again(model, tokens, start),
        "chunks": lambda: _chunks(model, tokens, start, asked=ways is not None),
        "padded": lambda: _padded(model, others or _batch(tokens), start),
        "beams": lambda: _beams(model, tokens),
        "own": lambda: _own(model, script, tokens, alone),
    }
    wanted = WAYS if ways is None else ways
    theirs = ways is None and _generates(model)  # its own loop is that of padded and of beams
    return [
        _made(way, model, makers[way])
        for way in WAYS
        if way in wanted and not (theirs and way == "own")
    ]


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

    Many people's forwards take the whole prompt, then single tokens, and nothing else: what that
    shows is told apart from faults when it is judged.
    """
    title = _TITLES["chunks"]
    tokens = tokens[:_FED]
    if len(tokens) < _CHUNKS + _SINGLE:
        return Plan("chunks", title, model, None, why_not=f"{len(tokens)} tokens are too few")
    sizes = _sizes(len(tokens) - _SINGLE) + [1] * _SINGLE
    driven = start(tokens, 0)
    theirs = isinstance(driven.drive, Standard | EncoderDecoder)
    if not theirs and (why := driven.singly):
        return Plan("chunks", title, model, None, why_not=why)

    def feed(how: Drive) -> None:
        for end in accumulate(sizes):
            how.step(tokens[:end])

    plain = isinstance(driven.drive, Standard)
    # some build what hides a chunk's later tokens out of the mask that `generate` always gives
    told = (lambda: feed(Standard(model, masked=True))) if plain else None
    presumed = not (asked or theirs)
    return Plan("chunks", title, driven.model, lambda: feed(driven.drive), told, presumed=presumed)


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


def _padded(model: Any, prompts: Sequence[Sequence[int]], start: Start) -> Plan:
    """Prompts of unlike lengths in a batch, filled up at the left, an encoder's at the right."""
    if not _generates(model):
        return _abreast(model, prompts, start)
    right = is_encoder_decoder(model)
    title = f"{'right' if right else 'left'}-padded batch of {len(prompts)}"

    def drive() -> None:
        filler = _filler(model)
        width = max(map(len, prompts))
        rows = [_filled(row, width, filler, right) for row in prompts]
        mask = [_filled([1] * len(row), width, 0, right) for row in prompts]
        device = device_of(model)
        given = torch.tensor(rows, device=device), torch.tensor(mask, device=device)
        _generate(model, *given, _BATCH_STEPS)

    return Plan("padded", title, model, drive)


def _abreast(model: nn.Module, prompts: Sequence[Sequence[int]], start: Start) -> Plan:
    """Texts of one length side by side, where nobody says how the model is told of padding."""
    title = f"batch of {len(prompts)}, equally long"
    rows = _equally_long(prompts)
    driven = start(rows[0], 0)
    drive = _with_more(driven.drive, rows[1:])
    if isinstance(drive, str):
        return Plan("padded", title, model, None, why_not=drive)

    def feed() -> None:
        for end in range(len(rows[0]) - _SINGLE, len(rows[0]) + 1):
            drive.step(rows[0][:end])

    return Plan("padded", title, driven.model, feed, presumed=True)


def _with_more(drive: Drive, texts: Sequence[Sequence[int]]) -> Drive | str:
    """A drive that takes further texts beside the first one, or why there is none."""
    if isinstance(drive, Standard):
        return drive.again(texts)
    if not isinstance(drive, Calls):
        return "it takes one text"
    if not drive.way.caches:
        return "no cache was found"
    if drive.way.layout not in ("batch", "time first"):
        return "it takes ids of one text"
    return drive.again(drive.capacity, drive.source, texts)


def _equally_long(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """As long as the longest: what is missing at the end of one is begun with again, backwards."""
    width = max(map(len, prompts))
    return [[row[~(at % len(row))] for at in range(width)][::-1] for row in prompts]


def _own(model: nn.Module, script: ModuleType | None, tokens: Sequence[int], alone: int) -> Plan:
    """The loops that its own code generates with."""
    script = beside_model(model) if script is None else script
    prompt = tokens[: alone or _OWN_LENGTH]
    steps = len(tokens) - alone + 1 if alone else _OWN_STEPS
    loops = own_loops(model, script, prompt, steps)
    names = ", ".join(f"{name}()" for name, _ in loops)
    title = f"its own {names or 'loop'}"
    if not loops:
        why = "no method or function that generates was found, or none that runs with a prompt"
        return Plan("own", title, model, None, why_not=why)
    drive = partial(run_loops, model, loops, prompt, steps)
    keeps = not (alone or resets(model))
    return Plan("own", title, model, drive, keeps=keeps, prompt=tuple(prompt))


def _filled(row: Sequence[int], width: int, filler: int, right: bool) -> list[int]:
    """A row of some width."""
    more = [filler] * (width - len(row))
    return [*row, *more] if right else [*more, *row]


def _beams(model: Any, tokens: Sequence[int]) -> Plan:
    """Beam search: rows of the cache change places."""
    title = f"{_BEAMS} beams"
    if not _generates(model):
        return Plan(
            "beams", title, model, None, why_not="it has no generate that searches with beams"
        )

    def drive() -> None:
        ids = torch.tensor([list(tokens[:_BEAM_LENGTH])], device=device_of(model))
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
