"""How the user's own generation calls the model: watched on a private copy.

Where their code already decodes with a cache, a token at a time, that is the way to call it, right
or wrong: what it does wrong is what kvtrace is there to show.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.driving.begins import methods
from kvtrace.record.driving.evidence import Trials
from kvtrace.record.driving.patterns import Pattern, pattern
from kvtrace.record.driving.private import nothing_left
from kvtrace.record.driving.roles import Signature, parameters_of

Generation = Callable[[nn.Module, Sequence[int]], object]

NEW_TOKENS = 3
_WINDOW = 1024
_GENERATES = re.compile(
    r"(\w+_)?(generate|generation|sample|greedy|decode|complete|infer|inference)(_\w+)?"
)
_COUNTS = re.compile(
    r"(max_?)?(new_?)?(tokens?|steps?|length|len|n|num|count|gen_len)(_to_(generate|sample))?"
    r"|n(um)?_?(new_?)?(tokens?|steps?)|(max|n|num)_?(new|gen|predict)(_tokens)?|steps?|k|seq_len"
    r"|max_gen_len|total_len"
)
_TOTALS = re.compile(r"(max_)?(seq_)?len(gth)?|seq_len|total_len|max_length")
_IDS = re.compile(r"(\w+_)?(ids?|idx|tokens?|prompts?|input_ids|inputs?|x|context|start\w*|seq)s?")


def observed(trials: Trials, signature: Signature) -> list[Pattern]:
    """Calls of the first of their generations that feeds single tokens; empty where none does.

    Args:
        trials: Makes private copies of the model, and has a prompt.
        signature: Of its forward.
    """
    prompt = trials.tokens[: trials.prefill]
    for call in _generations(trials.model, trials.script):
        with nothing_left(trials.model, trials.script):
            calls = _watched(call, trials.fresh(), signature, prompt)
        if _feeds_single_tokens(calls, signature, len(prompt)):
            return calls
    return []


def _watched(
    call: Generation, model: nn.Module, signature: Signature, prompt: Sequence[int]
) -> list[Pattern]:
    """What the model is given while they generate; nothing where that raises early."""
    calls: list[Pattern] = []
    hook = model.register_forward_pre_hook(_recorder(signature, calls), with_kwargs=True)
    try:
        with torch.no_grad():
            call(model, prompt)
    except Exception:
        if len(calls) < NEW_TOKENS:
            calls.clear()
    finally:
        hook.remove()
    return calls


def matches(seen: Sequence[Pattern], calls: Sequence[Pattern]) -> bool:
    """Whether a way's calls look like those that were seen: the prompt, then a single token."""
    return len(seen) >= 2 and len(calls) >= 2 and list(seen[:2]) == list(calls[:2])


# -- running theirs ------------------------------------------------------------------------------


def _generations(model: nn.Module, script: ModuleType | None) -> Iterator[Generation]:
    yield from map(_by_method, generators(model))
    for name, function in [] if script is None else list(vars(script).items()):
        if inspect.isfunction(function) and _GENERATES.fullmatch(name.lower()):
            yield _by_function(function)


def _by_method(name: str) -> Generation:
    return lambda model, prompt: _call(getattr(model, name), None, model, prompt)


def _by_function(function: Callable[..., object]) -> Generation:
    return lambda model, prompt: _call(function, model, model, prompt)


def _call(
    function: Callable[..., object],
    first: nn.Module | None,
    model: nn.Module,
    prompt: Sequence[int],
) -> None:
    """Their function with a prompt and a number of new tokens."""
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    ids = torch.tensor([list(prompt)], device=device)
    result = function(**generation_arguments(function, ids, NEW_TOKENS, first))
    if inspect.isgenerator(result):
        for _, _ in zip(range(NEW_TOKENS), result, strict=False):
            pass


def generation_arguments(
    function: Callable[..., object], ids: Tensor, count: int, first: nn.Module | None = None
) -> dict[str, object]:
    """Ids and a number of new tokens, by name; whatever else has a default keeps it."""
    values: dict[str, object] = {}
    declared = [one for one in parameters_of(function) if one.kind is one.POSITIONAL_OR_KEYWORD]
    if first is not None and declared:
        values[declared.pop(0).name] = first
    for one in declared:
        name = one.name.lower()
        if _IDS.fullmatch(name) and not any(each is ids for each in values.values()):
            values[one.name] = ids
        elif _COUNTS.fullmatch(name):
            values[one.name] = count + (ids.shape[1] if _TOTALS.fullmatch(name) else 0)
        elif one.default is one.empty:
            values[one.name] = _WINDOW if "context" in name or "block" in name else None
    return values


def generators(model: nn.Module) -> Iterator[str]:
    """Methods that generate, by their names."""
    for name, _ in methods(model):
        if _GENERATES.fullmatch(name.lower()):
            yield name


def _recorder(signature: Signature, calls: list[Pattern]) -> Callable[..., None]:
    names = [one.name for one in signature.parameters]

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(calls) < NEW_TOKENS:
            values = dict(zip(names, args, strict=False)) | kwargs
            calls.append(pattern(signature, values))

    return hook


def _feeds_single_tokens(calls: list[Pattern], signature: Signature, prompt: int) -> bool:
    """Whether the prompt went in at once, and then one token."""
    ids = signature.ids
    if ids is None or len(calls) < 2:
        return False
    shapes = [call.get(ids.name) for call in calls[:2]]
    wanted = [(1, prompt), (1, 1)], [(prompt,), (1,)]
    return shapes in [[("whole", shape) for shape in pair] for pair in wanted]
