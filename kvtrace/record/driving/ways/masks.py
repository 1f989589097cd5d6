"""What the masks of somebody's forward are given: one side of a model at a time."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from itertools import product

from kvtrace.record.driving.ways import way as forms
from kvtrace.record.driving.ways.roles import Parameter, Signature, with_roles
from kvtrace.record.driving.ways.way import Argument

Choice = tuple[Argument, ...]

_NOTHING = "None"

SOURCE_SIDE = re.compile(r"src|source|enc|memory|mem_|cross", re.IGNORECASE)
_BESIDE = re.compile(r"pad|key_|src|source|enc|memory|mem_|cross|loss", re.IGNORECASE)

_SHAPES: tuple[tuple[str, forms.Form], ...] = (
    ("causal [new, all]", forms.causal),
    ("causal [1, new, all]", forms.ahead(forms.causal)),
    ("causal [1, 1, new, all]", forms.ahead(forms.causal, 2)),
    ("0 or -inf [new, all]", forms.added),
    ("ones [1, all]", forms.all_ones),
    ("blocked [new, all]", forms.blocked),
    ("blocked [1, new, all]", forms.ahead(forms.blocked)),
)
_SOURCE_SHAPES: tuple[tuple[str, forms.Form], ...] = (
    ("ones [1, prompt]", forms.all_ones),
    ("ones [1, 1, prompt]", forms.ahead(forms.shown, 2)),
    ("ones [1, 1, 1, prompt]", forms.ahead(forms.shown, 3)),
)


def masks(signature: Signature, *, plain: bool = False) -> list[Choice]:
    """Masks where they must be given; without a cache also where they may be.

    Args:
        signature: Of the forward.
        plain: The call has no cache.
    """
    takers = list(signature.of("mask"))
    sources = [one for one in takers if signature.of("source") and SOURCE_SIDE.search(one.name)]
    own = [one for one in takers if one not in sources]
    of_source = _of_source([one for one in sources if one.required])
    return [(*one, *other) for other, one in product(of_source, _own(own, plain))]


def hiding_later(parameters: Mapping[str, inspect.Parameter]) -> list[Choice]:
    """Masks that hide later tokens, where a forward may be given some.

    Args:
        parameters: Of it, by name.
    """
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [one for one in parameters.values() if one.kind not in kinds]
    choices = masks(Signature("", with_roles(named)), plain=True)
    return [choice for choice in choices if any(one.said != _NOTHING for one in choice)]


def padded(signature: Signature) -> Choice:
    """Masks that may be left out, given over all that a cache can hold."""
    takers = [one for one in signature.of("mask") if not one.required]
    said = "causal [1, new, capacity]"
    return tuple(
        Argument(one.name, said, forms.ahead(forms.causal), padded=True) for one in takers[:1]
    )


def _own(takers: list[Parameter], plain: bool) -> list[Choice]:
    """Of the tokens: none, then every form, for the mask proper, each of several, and all alike."""
    needed = [one for one in takers if one.required]
    nothing = tuple(Argument(one.name, _NOTHING, lambda *_: None) for one in needed)
    if not needed and not plain:
        return [()]
    choices = [nothing]
    for group in _groups(needed or takers):
        names = {one.name for one in group}
        rest = tuple(one for one in nothing if one.name not in names)
        for said, form in _SHAPES:
            choices.append((*(Argument(one.name, said, form) for one in group), *rest))
    return choices


def _groups(takers: list[Parameter]) -> list[list[Parameter]]:
    """Which masks are given together: those of padding are not what makes a model causal."""
    proper = [one for one in takers if not _BESIDE.search(one.name)]
    found = [proper, *([one] for one in proper), takers]
    return [one for place, one in enumerate(found) if one and one not in found[:place]]


def _of_source(takers: list[Parameter]) -> list[Choice]:
    """Of what is encoded, all of which may be seen."""
    if not takers:
        return [()]
    nothing = tuple(Argument(one.name, _NOTHING, lambda *_: None) for one in takers)
    shown = [
        tuple(Argument(one.name, said, form, of_source=True) for one in takers)
        for said, form in _SOURCE_SHAPES
    ]
    return [nothing, *shown]
