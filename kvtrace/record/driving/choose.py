"""From a model and what its file offers to a drive.

The user's own functions come first, then transformers' way, then the way that is found by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from msgspec import Struct
from msgspec.structs import replace
from torch import nn

from kvtrace.errors import ModelError
from kvtrace.record.capture.caches.handing import NAMES, cache_name
from kvtrace.record.decode import Drive, Standard
from kvtrace.record.driving.adapter import adapted
from kvtrace.record.driving.encoded import EncoderDecoder, is_encoder_decoder
from kvtrace.record.driving.entrance import entrances, plain_entrances, through
from kvtrace.record.driving.gathered import gathered, object_of
from kvtrace.record.driving.generating import Generating, by_generating
from kvtrace.record.driving.paired import Pair, pairs, together
from kvtrace.record.driving.translating import Translating, translated, translating
from kvtrace.record.driving.trying.found import FoundWay
from kvtrace.record.driving.trying.lengths import lengths
from kvtrace.record.driving.trying.observe import generators
from kvtrace.record.driving.trying.ready import given_by_theirs, shape_of, takes
from kvtrace.record.driving.trying.search import Search
from kvtrace.record.driving.ways.calls import Calls
from kvtrace.record.driving.ways.roles import parameters_of
from kvtrace.record.driving.wish import Wish
from kvtrace.record.prepared import METHOD, prepares
from kvtrace.record.theirs import MODEL
from kvtrace.record.whose import of_transformers

_SINGLY = {
    "one": "it takes one token at a time",
    "each": "it takes one token at a time",
    "all": "it is given all tokens at every step, and takes the new ones itself",
}

_USUAL = {"input_ids", "use_cache", "attention_mask", "return_dict", *NAMES}
"""What transformers passes to any model."""


class Driven(Struct, frozen=True):
    """A drive, and how it calls the model.

    Attributes:
        drive: For the decode loop.
        prompt: What that begins with, token ids: the prompt, or what a decoder begins with whose
            encoder reads it.
        call: One short line: the call.
        said: Sentences for people.
        model: What it calls, to be watched: the model, or a part of it.
        singly: Why it can't be given several tokens once there is a cache; empty: it can.
        wish: What was to be driven; None: a model that is called as those of transformers are.
    """

    drive: Drive
    prompt: Sequence[int]
    call: str
    said: tuple[str, ...]
    model: nn.Module
    singly: str = ""
    wish: Wish | None = None


def choose_drive(model: nn.Module, wish: Wish) -> Driven:
    """The drive of a model.

    Raises:
        ModelError: No way to call it was found; says what to add.
    """
    return replace(_chosen(model, wish), wish=wish)


def _chosen(model: nn.Module, wish: Wish) -> Driven:
    if "step" in wish.functions:
        made = " with the cache of your make_cache" if "make_cache" in wish.functions else ""
        call = f"your step(model, ids, cache, pos){made}"
        shape = shape_of(model, wish)
        drive, watched = adapted(model, wish.functions, wish.capacity, shape, wish.script)
        singly = "your step takes one token at a time" if drive.singly else ""
        return Driven(drive, wish.prompt, call, (f"driven by {call}",), watched, singly)
    if called_as_transformers(model):
        return _as_its_own_loop(model, wish) or as_transformers(model, wish.prompt)
    return _by_trying(model, wish)


def afresh(driven: Driven, model: nn.Module, prompt: Sequence[int], new_tokens: int) -> Driven:
    """A model that is called as before, for another text: what was found is not sought again."""
    if driven.wish is None:
        return as_transformers(model, prompt)
    wish = replace(driven.wish, prompt=prompt, new_tokens=new_tokens)
    if not isinstance(driven.drive, Calls):
        return choose_drive(model, wish)
    calls = driven.drive.again(wish.capacity, _source(wish))
    return replace(driven, drive=calls, prompt=wish.prompt)


def as_transformers(model: nn.Module, prompt: Sequence[int]) -> Driven:
    """The drive of a model of transformers, or of one that is called like those.

    Raises:
        ModelError: Its encoder reads no text, or nothing says what its decoder begins with.
    """
    cache = f"{cache_name(model.forward)}=cache, use_cache=True"
    if is_encoder_decoder(model):
        drive = EncoderDecoder(model, prompt)
        call = f"model(encoder_outputs, decoder_input_ids, {cache})"
        how = f"the encoder reads the prompt once, the decoder begins with token {drive.begin}"
        return Driven(drive, [drive.begin], call, (f"called as {call}", how), model)
    call = f"model(input_ids, {cache})"
    if prepares(model):
        call = f"model(**model.{METHOD}(ids, …)), as generate() does"
    return Driven(Standard(model), prompt, call, (f"called as {call}",), model)


def called_as_transformers(model: nn.Module) -> bool:
    """Also a class of one's own on top of one of theirs: its mistakes must not be driven around."""
    if of_transformers(type(model)):
        return True
    return MODEL.has(model) and any(
        one.name in NAMES or one.kind is one.VAR_KEYWORD for one in parameters_of(model.forward)
    )


def _as_its_own_loop(model: nn.Module, wish: Wish) -> Driven | None:
    """As somebody's class on top of transformers' generates, which says where its tokens stand.

    None where it generates as transformers does, or passes nothing but what that passes, too.
    """
    if prepares(model) or not any(generators(model)):
        return None
    try:
        if given_by_theirs(model, wish) <= _USUAL:
            return None
        search, found = _searched(model, wish)
    except ModelError:
        return None
    return _driven(search, found) if found.as_theirs else None


def _by_trying(model: nn.Module, wish: Wish) -> Driven:
    """By its forward; by other methods, where only those have a cache, or one that agrees.

    Else by a module within it.

    Raises:
        ModelError: Nothing of these can be called.
    """
    try:
        search, found = _searched(model, wish)
    except ModelError as error:
        ways = (_by_object, _by_pair, _by_entrance, _by_translating, _by_inner, _by_plain_entrance)
        driven = next((made for way in ways if (made := way(model, wish))), None)
        driven = driven or _with_more(model, wish, error) or _by_generating(model, wish)
        if driven is None:
            raise
        return driven
    if not found.way.caches:
        driven = _by_pair(model, wish) or _by_entrance(model, wish)
        if driven := driven or _by_translating(model, wish):
            return driven
    # what only their own method for single tokens sets may not be meant for a prompt
    known = not found.way.caches or found.agrees or found.as_theirs
    if not known and (driven := _by_pair(model, wish, named_so=True)):
        return driven
    return _driven(search, found)


def _searched(model: nn.Module, wish: Wish, *, thorough: bool = True) -> tuple[Search, FoundWay]:
    search = Search(model, wish, thorough=thorough)
    return search, search.run()


def _with_more(model: nn.Module, wish: Wish, few: ModelError) -> Driven | None:
    """With more tokens than a few; None where no number of them does.

    Raises:
        ModelError: It asks for another number of tokens than the run has.
    """
    for count in lengths(model, wish):
        search = Search(model, wish, thorough=False, count=count)
        try:
            found = search.run()
        except ModelError:
            continue
        asked = len(wish.prompt)
        if all(takes(model, wish, found.way, one) for one in (asked, asked + 1)):
            return _driven(search, found)
        other = "" if takes(model, wish, found.way, count + 1) else f", but not with {count + 1}"
        raise ModelError(
            f"{type(model).__name__} can be called as {found.way} with {count} tokens{other}, and "
            f"the prompt has {asked}: give another one. With a few tokens, {few}"
        )
    return None


def _driven(search: Search, found: FoundWay, name: str = "model") -> Driven:
    wish = search.wish
    calls = Calls(
        search.model, found.way, wish.capacity, shape_of(search.model, wish), _source(wish)
    )
    call, said = (one.replace("model(", f"{name}(", 1) for one in (str(found.way), found.said[0]))
    singly = _SINGLY.get(found.way.feeds, "") if found.way.caches else "no cache was found"
    return Driven(calls, wish.prompt, call, (said, *found.said[1:]), search.model, singly)


def _source(wish: Wish) -> Sequence[int]:
    """Shorter than the text: rows of the one side are never as many as those of the other."""
    return wish.prompt[:-1] or wish.prompt


def _by_object(model: nn.Module, wish: Wish) -> Driven | None:
    """By the fields of the object that its forward takes."""
    kind = object_of(model)
    if kind is None:
        return None
    remake = None if wish.remake is None else partial(_remade_gathered, wish.remake, kind)
    try:
        search, found = _searched(gathered(model, kind), replace(wish, remake=remake))
    except ModelError:
        return None
    return _driven(search, found, f"model of {kind.__name__}")


def _by_entrance(model: nn.Module, wish: Wish) -> Driven | None:
    """By a method besides forward whose cached steps agree."""
    ways = _through_each(model, wish, entrances(model))
    return next((way for way, found in ways if found.way.caches and found.agrees), None)


def _by_pair(model: nn.Module, wish: Wish, *, named_so: bool = False) -> Driven | None:
    """By a method for the prompt and one for what follows, whose cached steps agree."""
    for pair in pairs(model, named_so=named_so):
        if not pair.flat and pair.singly(model) and (driven := _by_single(model, wish, pair)):
            return driven
        remake = None if wish.remake is None else partial(_remade_together, wish.remake, pair)
        try:
            search, found = _searched(together(model, pair), replace(wish, remake=remake))
        except ModelError:
            continue
        # all tokens at every step would be a prompt at every step
        if found.way.caches and found.agrees and found.way.feeds == "new":
            return replace(_driven(search, found, str(pair)), singly=f"{pair} for single tokens")
    return None


def _by_single(model: nn.Module, wish: Wish, pair: Pair) -> Driven | None:
    """By the method for single tokens alone, where that for a prompt is a loop around it.

    So every token's row is that of a step, as it is in their loop.
    """
    ways = _through_each(model, wish, [pair.after])
    found = ((way, one.way) for way, one in ways if one.agrees)
    return next((driven for driven, way in found if way.caches and way.singly), None)


def _by_translating(model: nn.Module, wish: Wish) -> Driven | None:
    """By a method that encodes and one that takes a step, whose steps see those before."""
    for by in translating(model):
        remake = None if wish.remake is None else partial(_remade_translated, wish.remake, by)
        try:
            search, found = _searched(translated(model, by), replace(wish, remake=remake))
        except ModelError:
            continue
        if found.way.caches and found.agrees and found.way.singly:
            return replace(_driven(search, found, str(by)), singly=_SINGLY["one"])
    return None


def _by_plain_entrance(model: nn.Module, wish: Wish) -> Driven | None:
    """By the first other method that gives logits, with a cache or without."""
    return next((way for way, _ in _through_each(model, wish, plain_entrances(model))), None)


def _through_each(
    model: nn.Module, wish: Wish, names: Iterable[str]
) -> Iterator[tuple[Driven, FoundWay]]:
    """The methods that can be called, one after the other."""
    for name in names:
        remake = None if wish.remake is None else partial(_remade_through, wish.remake, name)
        try:
            search, found = _searched(through(model, name), replace(wish, remake=remake))
        except ModelError:
            continue
        yield _driven(search, found, f"model.{name}"), found


def _may_take_ids(module: nn.Module) -> bool:
    """Whether it has a table of tokens within, and is no plain container."""
    contained = isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential | nn.Embedding)
    return not contained and any(isinstance(one, nn.Embedding) for one in module.modules())


def _by_generating(model: nn.Module, wish: Wish) -> Driven | None:
    """By its own generating method, asked for one token after the other."""
    found = by_generating(model, wish)
    if found is None:
        return None
    watched, name = found
    call = f"model.{name}(ids [1, all], 1)"
    said = (
        f"called as {call}, as nothing else in it takes ids: it chooses the tokens itself and "
        "begins anew at every step, so that no cache can be watched; `kvtrace run` of a script "
        "that calls it shows what it keeps"
    )
    return Driven(Generating(watched), wish.prompt, call, (said,), watched, "it can only generate")


def _remade_through(remake: Callable[[], nn.Module], name: str) -> nn.Module:
    return through(remake(), name)


def _remade_gathered(remake: Callable[[], nn.Module], kind: type) -> nn.Module:
    return gathered(remake(), kind)


def _remade_translated(remake: Callable[[], nn.Module], by: Translating) -> nn.Module:
    return translated(remake(), by)


def _remade_together(remake: Callable[[], nn.Module], pair: Pair) -> nn.Module:
    return together(remake(), pair)


def _by_inner(model: nn.Module, wish: Wish) -> Driven | None:
    """By a module within it that takes ids and returns logits."""
    for path, module in model.named_modules():
        if not path or path.count(".") > 1 or not _may_take_ids(module):
            continue
        try:
            search, found = _searched(module, replace(wish, remake=None), thorough=False)
        except ModelError:
            continue
        return _driven(search, found, f"model.{path}")
    return None
