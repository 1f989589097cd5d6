"""What a model must be given to read beside its tokens: a picture, rows of features, or angles.

Their sizes are read off the model, or are usual ones; which of them do, trying shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice, product
from types import ModuleType

from msgspec.structs import replace
from torch import nn

from kvtrace.record.driving.ways.roles import Beside, Given, Parameter, Signature
from kvtrace.record.driving.ways.sizes import Sizes
from kvtrace.record.driving.ways.tables import tables

_PICTURES = re.compile(
    r"(\w+_)?(images?|imgs?|pixels?|pixel_values|pictures?|photos?|screenshots?)(_\w+)?"
)
_ROWS = re.compile(
    r"(\w+_)?(memory|mem|features?|feats?|enc(oder)?_(outs?|outputs?|hidden(_states?)?|states?)"
    r"|context|cond|conditioning|visual\w*)(_\w+)?"
)
_SIDE = re.compile(r"(image|img|input|picture)_?(size|res(olution)?)|resolution")
_WIDTH = re.compile(
    r"(enc(oder)?|feat(ure)?s?|image|img|visual|vision|memory|context|cond)_?(dim|size|width|channels)"
)
_SIDES = (224, 256, 64, 32, 128, 28)
_ROWS_BESIDE = 5
_MOST = 12


def given_beside(
    signature: Signature, model: nn.Module, script: ModuleType | None
) -> Iterator[Signature]:
    """The signature with what its required parameters of such names may be given.

    Args:
        signature: Of its forward.
        model: To look at its sizes; nothing is called.
        script: The user's file, whose functions may make what is asked for.
    """
    choices: dict[str, Sequence[Given]] = {
        one.name: [*_shapes(one, model), *tables(one, signature, model, script)]
        for one in signature.of("other")
        if one.required
    }
    needed = {name: each for name, each in choices.items() if each}
    if not needed:
        return
    for mix in islice(product(*needed.values()), _MOST):
        by_name = dict(zip(needed, mix, strict=True))
        yield replace(
            signature,
            parameters=tuple(
                replace(one, beside=by_name.get(one.name)) for one in signature.parameters
            ),
        )


def _shapes(one: Parameter, model: nn.Module) -> Sequence[Beside]:
    name = one.name.lower()
    if _PICTURES.fullmatch(name) and (convolutions := _convolutions(model)):
        channels = convolutions[0].in_channels
        sides = dict.fromkeys([*_told(model, _SIDE), *_SIDES])
        return [Beside((1, channels, side, side), "a picture") for side in sides]
    if _PICTURES.fullmatch(name) or _ROWS.fullmatch(name):
        width = Sizes(model, 0).of("width")
        widths = dict.fromkeys([*_told(model, _WIDTH), *([width] if width else [])])
        lengths: Sequence[tuple[int, ...]] = ((1, _ROWS_BESIDE), (1,))
        return [Beside((*before, each), "features") for before in lengths for each in widths]
    return ()


def _convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [one for one in model.modules() if isinstance(one, nn.Conv2d)]


def _told(model: nn.Module, pattern: re.Pattern[str]) -> Iterator[int]:
    """Numbers that modules or their configurations hold by such a name."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            held = vars(value).items() if hasattr(value, "__dict__") and "conf" in name else ()
            for inner, number in ((name, value), *held):
                side = number[0] if isinstance(number, tuple | list) and number else number
                if type(side) is int and side > 0 and pattern.fullmatch(inner.lower()):
                    yield side
