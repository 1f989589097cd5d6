"""How the user's own generation calls the model: watched on a private copy.

Where their code already decodes with a cache, a token at a time, that is the way to call it, right
or wrong: what it does wrong is what kvtrace is there to show. Where it passes the whole text anew
at every step, what it passes beside it holds no rows for the next one: memories of segments, say.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import ModuleType
from typing import Any, Literal

import torch
from msgspec import Struct
from torch import Tensor, nn

from kvtrace.record.capture.replaced.stand_in import in_place_of
from kvtrace.record.driving.trying.evidence import Trials
from kvtrace.record.driving.trying.patterns import Pattern, pattern
from kvtrace.record.driving.trying.private import nothing_left
from kvtrace.record.driving.ways.offered import methods
from kvtrace.record.driving.ways.roles import Signature, parameters_of, widened
from kvtrace.record.processes.local import device_of

Generation = Callable[[nn.Module, Sequence[int], int], object]
"""(model, prompt, tokens to generate) to whatever it returns."""

Form = Literal["tensor", "list", "lists"]
"""A prompt as loops take it: a tensor [1, ids], a list of ids, or a list of such lists."""

FORMS: tuple[Form, ...] = ("tensor", "list", "lists")

NEW_TOKENS = 3
_WINDOW = 1024
_GENERATES = re.compile(
    r"(\w+_)?(generate|generation|sample|greedy|decode|complete|infer|inference|beam_?search"
    r"|translate)(_\w+)?"
)
_COUNTS = re.compile(
    r"(max_?)?(new_?)?(tokens?|steps?|length|len|n|num|count|gen_len)(_to_(generate|sample))?"
    r"|n(um)?_?(new_?)?(tokens?|steps?)|(max|n|num)_?(new|gen|predict)(_tokens)?|steps?|k|seq_len"
    r"|max_gen_len|total_len"
)
_TOTALS = re.compile(r"(max_)?(seq_)?len(gth)?|seq_len|total_len|max_length")
_IDS = re.compile(
    r"(\w+_)?(ids?|idx|tokens?|prompts?|input_ids|inputs?|x|context|start\w*|seq)s?"
    r"|(src|source)(_\w+)?"
)


class SeenEnoughError(Exception):
    """Ends somebody's loop, which might go on forever."""


class Observed(Struct, frozen=True):
    """What their generations show.

    Attributes:
        calls: Of the first that feeds single tokens; empty where none does.
        unfilled: Where none does, what the first that passes all tokens anew passes beside them,
            each time the same.
        through: Names beyond those declared that the calls pass: `**kwargs` takes them.
        before: Methods of the model that they call first, with nothing: a cache may begin there.
    """

    calls: Sequence[Pattern] = ()
    unfilled: frozenset[str] = frozenset()
    through: frozenset[str] = frozenset()
    before: Sequence[str] = ()


@dataclass(slots=True)
class _Seen:
    """What a generation passes to the model while it is watched."""

    calls: list[Pattern] = field(default_factory=list)
    given: set[str] = field(default_factory=set)
    before: list[str] = field(default_factory=list)


def observed(trials: Trials, signature: Signature) -> Observed:
    """What the user's own generations pass to the model.

    Args:
        trials: Makes private copies of the model, and has a prompt.
        signature: Of its forward.
    """
    prompt = trials.tokens[: trials.prefill]
    unfilled: frozenset[str] = frozenset()
    each = (generations(trials.model, trials.script, form) for form in FORMS)
    for _, call in chain.from_iterable(each):
        for one in (call, counting_all(call)):
            with nothing_left(trials.model, trials.script):
                seen = _watched(one, trials.fresh(), signature, prompt)
            if len(seen.calls) > 1:
                break
        if _feeds(seen.calls, signature, len(prompt), 1):
            declared = {one.name for one in signature.parameters}
            through = frozenset(seen.given) - declared
            return Observed(seen.calls, through=through, before=seen.before)
        if not unfilled and _feeds(seen.calls, signature, len(prompt), len(prompt) + 1):
            first, second = seen.calls[:2]
            unfilled = frozenset(name for name in seen.given if first.get(name) == second.get(name))
    return Observed((), unfilled)


def _watched(
    call: Generation, model: nn.Module, signature: Signature, prompt: Sequence[int]
) -> _Seen:
    """What the model is given while they generate; nothing if that raises early.

    Its `forward` may be called without the call around it.
    """
    seen = _Seen()
    for name, method in list(methods(model)):
        if _needs_nothing(name, method):
            object.__setattr__(model, name, _naming(method, name, seen))
    object.__setattr__(model, "forward", _recording(model.forward, signature, seen))
    try:
        with torch.no_grad():
            call(model, prompt, NEW_TOKENS)
    except Exception:
        if len(seen.calls) < NEW_TOKENS:
            seen.calls.clear()
    return seen


def matches(seen: Sequence[Pattern], calls: Sequence[Pattern]) -> bool:
    """Whether a way's calls look like those that were seen: the prompt, then a single token."""
    return len(seen) >= 2 and len(calls) >= 2 and list(seen[:2]) == list(calls[:2])


# -- running theirs ------------------------------------------------------------------------------


def generations(
    model: nn.Module, script: ModuleType | None, form: Form
) -> Iterator[tuple[str, Generation]]:
    """Methods and functions that generate, by their names; methods, by what they take, too.

    Args:
        model: Whose methods.
        script: Of the user's, whose functions are given the model first.
        form: Of the prompt that they are given.
    """
    others = [name for name, one in methods(model) if _takes_a_number(name, one)]
    for name in dict.fromkeys([*generators(model), *others]):
        yield name, _by_method(name, form)
    for name, function in [] if script is None else list(vars(script).items()):
        if inspect.isfunction(function) and _GENERATES.fullmatch(name.lower()):
            yield name, _by_function(function, form)


def _by_method(name: str, form: Form) -> Generation:
    def call(model: nn.Module, prompt: Sequence[int], count: int) -> None:
        _call(getattr(model, name), None, model, prompt, count, form)

    return call


def _by_function(function: Callable[..., object], form: Form) -> Generation:
    def call(model: nn.Module, prompt: Sequence[int], count: int) -> None:
        _call(function, model, model, prompt, count, form)

    return call


def _call(
    function: Callable[..., object],
    first: nn.Module | None,
    model: nn.Module,
    prompt: Sequence[int],
    count: int,
    form: Form,
) -> None:
    """Their function with a prompt and a number of new tokens."""
    device = device_of(model)
    ids = torch.tensor([list(prompt)], device=device)
    unnamed, named = generation_arguments(function, ids, count, first)
    if form != "tensor":
        given = list(prompt) if form == "list" else [list(prompt)]
        unnamed = tuple(given if one is ids else one for one in unnamed)
        named = {name: given if one is ids else one for name, one in named.items()}
    result = function(*unnamed, **named)
    if inspect.isgenerator(result):
        for _, _ in zip(range(count), result, strict=False):
            pass


def generation_arguments(
    function: Callable[..., object], ids: Tensor, count: int, first: nn.Module | None = None
) -> tuple[Sequence[object], dict[str, object]]:
    """Ids and a number of new tokens, by name; whatever else has a default keeps it.

    Where no name says that it is for ids, they come first. A decorator may hide all names: then
    they come by place, and the number may be taken for that of all tokens.
    """
    values: dict[str, object] = {}
    named_kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    declared = [one for one in parameters_of(function) if one.kind in named_kinds]
    if not declared:
        hidden = ids, count + (ids.shape[1] if count > 1 else 0)
        return (hidden if first is None else (first, *hidden)), {}
    if first is not None and declared:
        values[declared.pop(0).name] = first
    needed = {one.name for one in declared if one.default is one.empty}
    named = [one.name for one in declared if _IDS.fullmatch(one.name.lower())]
    # a token to begin with has a default where the text has none
    named.sort(key=lambda name: name not in needed)
    place = next(iter(named or [one.name for one in declared[:1] if one.default is one.empty]), "")
    for one in declared:
        name = one.name.lower()
        if one.name == place and (named or not _COUNTS.fullmatch(name)):
            values[one.name] = ids
        elif _COUNTS.fullmatch(name):
            values[one.name] = count + (ids.shape[1] if _TOTALS.fullmatch(name) else 0)
        elif one.default is one.empty:
            values[one.name] = _WINDOW if "context" in name or "block" in name else None
    return (), values


def counting_all(call: Generation) -> Generation:
    """The same, for loops to which the number of new tokens is that of all, whatever its name."""
    return lambda model, prompt, count: call(model, prompt, len(prompt) + count + 1)


def generators(model: nn.Module) -> Iterator[str]:
    """Methods that generate, by their names."""
    for name, _ in methods(model):
        if _GENERATES.fullmatch(name.lower()):
            yield name


def _takes_a_number(name: str, method: Callable[..., object]) -> bool:
    """Whether a method takes ids and how many tokens, whatever it is called."""
    if name == "forward" or name.startswith("__"):
        return False
    names = [one.name.lower() for one in parameters_of(method)]
    return any(map(_IDS.fullmatch, names[:1])) and any(map(_COUNTS.fullmatch, names[1:]))


def _needs_nothing(name: str, method: Callable[..., object]) -> bool:
    """Whether a method of theirs can be called with nothing, and is no loop itself."""
    if name.startswith("__") or _GENERATES.fullmatch(name.lower()):
        return False
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return all(one.kind in kinds or one.default is not one.empty for one in parameters_of(method))


def _naming(method: Callable[..., object], name: str, seen: _Seen) -> Callable[..., object]:
    """A method that notes that it was called before the model, and with nothing."""

    def noting(*args: Any, **kwargs: Any) -> object:
        if not (args or kwargs or seen.calls or name in seen.before):
            seen.before.append(name)
        return method(*args, **kwargs)

    made: Callable[..., object] = in_place_of(method, noting)
    return made


def _recording(
    forward: Callable[..., object], signature: Signature, seen: _Seen
) -> Callable[..., object]:
    """A forward that notes what its first calls are given, and by what names."""
    names = [one.name for one in signature.parameters]

    def noting(*args: Any, **kwargs: Any) -> object:
        if len(seen.calls) == NEW_TOKENS:
            raise SeenEnoughError
        values = dict(zip(names, args, strict=False)) | kwargs
        seen.given.update(values)
        seen.calls.append(pattern(widened(signature, values), values))
        return forward(*args, **kwargs)

    made: Callable[..., object] = in_place_of(forward, noting)
    return made


def _feeds(calls: list[Pattern], signature: Signature, prompt: int, then: int) -> bool:
    """Whether the prompt went in at once, and then so many tokens."""
    ids = signature.ids
    if ids is None or len(calls) < 2:
        return False
    shapes = [call.get(ids.name) for call in calls[:2]]
    wanted = [(1, prompt), (1, then)], [(prompt,), (then,)]
    return shapes in [[("whole", shape) for shape in pair] for pair in wanted]
