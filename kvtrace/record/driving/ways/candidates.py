"""The ways in which a model might be called, in the order in which one would try them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product
from types import ModuleType

import torch
from torch import nn

from kvtrace.record.driving.ways import way as forms
from kvtrace.record.driving.ways.begins import begins_of, transformers_cache
from kvtrace.record.driving.ways.inside import called, inner_makers, resets, switches
from kvtrace.record.driving.ways.makers import makers
from kvtrace.record.driving.ways.masks import SOURCE_SIDE, Choice, masks, padded
from kvtrace.record.driving.ways.roles import Parameter, Signature
from kvtrace.record.driving.ways.way import Argument, Begin, Layout, Passed, Way

_PLURAL = re.compile(r".*(ids|positions|input_pos|cache_position|pos_idx)$")
_TOTAL = re.compile(r"(end|total|seq|cur).*|.*(end|total)_?(pos|len|length)")
_PREFILL = re.compile(r"(is_)?(prefill|first\w*|prompt)(_\w+)?")
_LABELS = re.compile(r"targets?|labels?|ys?|label_ids")
_LENGTHS = re.compile(
    r"(\w+_)?(lengths|lens)"
    r"|(src|source|enc|encoder|input|text|x|tgt|trg|target|dec|decoder)_?(len|length|seq_?len)"
)
_CACHE = re.compile(r"cache|past|kv")
_PICKS = 3
_LIKELY = 4


def plain_ways(signature: Signature) -> Iterator[Way]:
    """Without a cache: all tokens at every step."""
    quiet = _turned(signature, on=False)
    for layout, labels in product(_layouts(), (False, True)):
        filled = _filled(signature, labels)
        if labels and filled == _filled(signature, False):
            continue
        for shown, flags, places in product(
            masks(signature, plain=True), _unique([quiet, ()]), _places(signature, plain=True)
        ):
            yield Way(signature, layout, given=(*places, *shown, *filled, *flags))


def cached_ways(
    signature: Signature,
    model: nn.Module,
    script: ModuleType | None,
    plain: Way | None,
    beginning: Begin | None,
    before: Sequence[str],
) -> Iterator[Way]:
    """With a cache: the new tokens only.

    Args:
        signature: Of the model's forward.
        model: To look at its methods; nothing is called.
        script: The user's file.
        plain: A way without a cache that works, whose layout is taken over.
        beginning: How a cache that is passed begins, where it is known.
        before: Methods of the model that their own loop calls before it.
    """
    for layout in _layouts()[:2] if plain is None else [plain.layout]:
        yield from _passed(signature, model, script, layout, beginning)
        yield from _inside(signature, model, script, layout, before)
    if signature.open and not signature.of("cache"):
        yield from _guessed(signature)


def _passed(
    signature: Signature,
    model: nn.Module,
    script: ModuleType | None,
    layout: Layout,
    beginning: Begin | None,
) -> Iterator[Way]:
    """A parameter takes the cache. What is likeliest of everything comes before the rest of it."""
    takers = signature.of("cache")
    first = tuple(resets(model))
    options = list(_options(signature))
    groups = [
        (names, _begins_of(names, takers, model, script, beginning)) for names in _groups(takers)
    ]
    for part in (options[:_LIKELY], options[_LIKELY:]):
        for names, begins in groups:
            for begin, given in product(begins, part):
                picks = [Passed(names, begin, pick) for pick in range(_PICKS)]
                if begin.of_class:
                    picks.append(Passed(names, begin, moved=True))
                for cache in picks:
                    yield Way(signature, layout, cache, first=first, given=given)
                yield Way(signature, layout, picks[0], first=first, given=given, feeds="all")


def _begins_of(
    names: tuple[str, ...],
    takers: tuple[Parameter, ...],
    model: nn.Module,
    script: ModuleType | None,
    beginning: Begin | None,
) -> list[Begin]:
    if beginning is not None:
        return [beginning]
    parameter = next(one for one in takers if one.name == names[0])
    begins = begins_of(model, parameter, script)
    if "Cache" in parameter.annotation or "past_key_values" in names:
        begins.append(transformers_cache())
    return begins


def _groups(takers: tuple[Parameter, ...]) -> list[tuple[str, ...]]:
    """Keys and values may have a parameter each; of several kinds of cache one is taken."""
    takers = tuple(sorted(takers, key=lambda one: _CACHE.search(one.name) is None))
    names = [one.name for one in takers]
    pairs = [
        (one, other)
        for one in names
        for other in names
        if one != other
        and re.sub(r"k(ey)?s?(?=_|$)", "v", one) == re.sub(r"v(alue)?s?(?=_|$)", "v", other)
        and re.search(r"(^|_)k(ey)?s?(_|$)", one)
        and re.search(r"(^|_)v(alue)?s?(_|$)", other)
    ]
    required = tuple(one.name for one in takers if one.required)
    several = [required] if len(required) > 1 else []
    return list(dict.fromkeys([*several, *pairs, *((name,) for name in names)]))


def _inside(
    signature: Signature,
    model: nn.Module,
    script: ModuleType | None,
    layout: Layout,
    before: Sequence[str],
) -> Iterator[Way]:
    """The model keeps the cache itself."""
    empties = resets(model)
    setups: list[tuple[Begin, ...]] = [()]
    own = makers(model, script)
    setups += [(one,) for one in (*own, *inner_makers(model), *switches(model))]
    if len(own) > 1:
        setups.append(tuple(own))
    mask = padded(signature)
    for setup in setups:
        for reset in _unique([tuple(empties), ()]):
            for given in _options(signature):
                yield Way(signature, layout, inside=True, first=(*reset, *setup), given=given)
        for given in _options(signature) if mask else ():
            first = (*empties, *setup)
            yield Way(signature, layout, inside=True, first=first, given=(*given, *mask))
    for given in _options(signature) if before else ():
        yield Way(signature, layout, inside=True, first=called(before), given=given)
    on = {one.name for one in _turned(signature, on=True)}
    for given in _options(signature) if on else ():
        if on <= {one.name for one in given}:
            yield Way(signature, layout, None, True, tuple(empties), given, feeds="all")


def _guessed(signature: Signature) -> Iterator[Way]:
    """A forward that takes anything: the usual names."""
    on = Argument("use_cache", "True", lambda *_: True)
    nothing = Begin("None", lambda model, room: None)
    for name in ("past_key_values", "past", "cache", "kv_cache"):
        for flags in ((on,), ()):
            yield Way(signature, cache=Passed((name,), nothing), given=flags)


def _options(signature: Signature) -> Iterator[Choice]:
    """What the parameters besides ids and cache are given."""
    filled = _filled(signature, False)
    for places, flags, shown in product(_places(signature), _flags(signature), masks(signature)):
        yield (*places, *shown, *filled, *flags)


def _layouts() -> list[Layout]:
    return ["batch", "flat", "time first"]


def _flags(signature: Signature) -> list[Choice]:
    """Flags that speak of a cache turned on, all of them, each, none."""
    on = _turned(signature, on=True)
    required = tuple(
        Argument(one.name, "False", lambda *_: False)
        for one in signature.of("flag")
        if one.required and not one.turns_cache_on
    )
    prefill = tuple(
        Argument(one.name, "first call", forms.is_first)
        for one in signature.of("flag")
        if _PREFILL.fullmatch(one.name)
    )
    base = tuple(one for one in required if one.name not in {each.name for each in prefill})
    choices = [on, *([(one,) for one in on] if len(on) > 1 else []), ()]
    return _unique([(*choice, *base, *prefill) for choice in choices])


def _turned(signature: Signature, *, on: bool) -> Choice:
    """Flags that turn a cache on, given where the default is another."""
    said = str(on)
    return tuple(
        Argument(one.name, said, (lambda *_: True) if on else (lambda *_: False))
        for one in signature.of("flag")
        if (one.turns_cache_on and one.default is not on)
        or (one.required and not one.turns_cache_on and not on)
    )


def _places(signature: Signature, *, plain: bool = False) -> list[Choice]:
    """Positions in the forms that a name suggests; left out where they may be."""
    takers = signature.of("position")
    needed = [one for one in takers if one.required]
    spare = [one for one in takers if not one.required]
    must = _each_form(needed)
    if plain:
        return [*must, *_each_form(takers)] if spare else must
    left_out: list[Choice] = must
    told = [choice for one in spare for choice in _each_form([*needed, one])]
    everything = _each_form(takers) if len(spare) > 1 else []
    by_number = any(one.wants_number for one in spare) or not signature.of("cache")
    return _unique(
        [*told, *everything, *left_out] if by_number else [*left_out, *told, *everything]
    )


def _each_form(takers: list[Parameter] | tuple[Parameter, ...]) -> list[Choice]:
    """All of some parameters given, in every mix of their forms, the likeliest mix first."""
    every = [[Argument(one.name, said, form) for said, form in _forms(one)] for one in takers]
    if len(every) > 2:
        return [tuple(each[0] for each in every)]
    return [tuple(mix) for mix in product(*every)]


def _forms(one: Parameter) -> list[tuple[str, forms.Form]]:
    """What a position may look like."""
    number = [("start", forms.start_number)]
    many = [("positions [new]", forms.places), ("positions [1, new]", forms.ahead(forms.places))]
    few = [("start, a tensor", forms.start_scalar), ("start [1]", forms.ahead(forms.start_scalar))]
    total = [("tokens so far", forms.total_number)]
    if one.wants_number:
        return [*total, *number] if _TOTAL.fullmatch(one.name) else [*number, *total]
    if one.wants_tensor or _PLURAL.fullmatch(one.name):
        return [*reversed(many), *few] if one.name == "position_ids" else [*many, *few, *number]
    if _TOTAL.fullmatch(one.name):
        return [*total, *number, *many, *few]
    return [*number, *many, *few]


def _filled(signature: Signature, labels: bool) -> Choice:
    """Required parameters that nothing is known about; labels repeat the ids where they must."""
    given = []
    for one in signature.of("other"):
        if not one.required:
            continue
        if labels and _LABELS.fullmatch(one.name.lower()):
            given.append(Argument(one.name, "zeros", _zeros))
            continue
        if one.beside is not None:
            given.append(Argument(one.name, str(one.beside), one.beside.form))
            continue
        if _LENGTHS.fullmatch(one.name.lower()) and one.annotation != "int":
            of_source = bool(signature.of("source") and SOURCE_SIDE.search(one.name))
            given.append(Argument(one.name, forms.LENGTHS, forms.lengths, of_source=of_source))
            continue
        said, value = _neutral(one)
        given.append(Argument(one.name, said, lambda *_, value=value: value))
    return tuple(given)


def _zeros(before: int, new: int, device: torch.device) -> object:
    return torch.zeros(1, new, dtype=torch.long, device=device)


def _neutral(one: Parameter) -> tuple[str, object]:
    """A value that changes nothing, as far as a name tells."""
    name = one.name.lower()
    if name in ("temperature", "scale"):
        return "1.0", 1.0
    if name in ("dropout", "p", "dropout_p") or one.annotation == "float":
        return "0.0", 0.0
    if name in ("batch_size", "bsz", "batch"):
        return "1", 1
    if name == "device":
        return "'cpu'", "cpu"
    return ("0", 0) if one.annotation == "int" else ("None", None)


def _unique(choices: list[Choice] | list[tuple[Begin, ...]]) -> list:  # type: ignore[type-arg]
    """Without repetitions, told by what is said of them."""
    seen: dict[tuple[tuple[str, str], ...], object] = {}
    for choice in choices:
        key = tuple((getattr(one, "name", ""), one.said) for one in choice)
        seen.setdefault(key, choice)
    return list(seen.values())
