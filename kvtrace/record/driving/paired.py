"""Two methods of a model as its forward: one takes the prompt, the other what comes after it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from itertools import product

from msgspec import Struct
from torch import Tensor, nn

from kvtrace.record.driving.entrance import called_by, through
from kvtrace.record.driving.ways.offered import methods
from kvtrace.record.driving.ways.roles import Signature, parameters_of, signature_of

_PROMPT = re.compile(
    r"(\w+_)?(prefill|prime|ingest|(process|feed|encode|run|forward)_prompt)(_\w+)?"
)
_FIRST = re.compile(r"forward|(start|begin|init|initiali[sz]e|setup|set_up|first|warm_?up)(_\w+)?")
"""What may take a prompt, where the method for single tokens is given a cache."""
_AFTER = re.compile(
    r"(\w+_)?(step|decode|next|extend|append|incremental|one|single)(_\w+)?"
    r"|(\w+_)?(forward|infer|inference)_(\w+_)?(step|one|token|cached|decode|next)"
)


class Pair(Struct, frozen=True):
    """Methods that decode together.

    Attributes:
        prompt: Takes all ids of a prompt.
        after: Takes one token at a time.
        flat: That token comes without an axis for its place in the sequence.
    """

    prompt: str
    after: str
    flat: bool

    def singly(self, model: nn.Module) -> bool:
        """Whether the one for a prompt calls the other one, for each of its tokens."""
        code = getattr(inspect.unwrap(getattr(model, self.prompt)), "__code__", None)
        return self.after in getattr(code, "co_names", ())

    def __str__(self) -> str:
        """For people: `model.prefill, then model.decode_step`."""
        return f"model.{self.prompt}, then model.{self.after}"


def pairs(model: nn.Module, *, named_so: bool = False) -> Iterator[Pair]:
    """Methods that look like such a pair, by their names.

    Args:
        model: Whose methods.
        named_so: One of them is named after the prompt. Else, where none is, others may take it.
    """
    named = [name for name, _ in methods(model) if not name.startswith("_")]
    signatures = {name: signature_of(through(model, name)) for name in named}
    takers = [name for name in named if signatures[name].ids is not None]
    afters = [name for name in takers if _AFTER.fullmatch(name.lower())]
    prompts = [name for name in takers if _PROMPT.fullmatch(name.lower())]
    if not (prompts or named_so):
        prompts = [name for name in takers if _FIRST.fullmatch(name.lower())]
        afters = [name for name in afters if signatures[name].of("cache")]
    for prompt, after in product(prompts, afters):
        if after != prompt:
            yield Pair(prompt, after, flat=False)
            yield Pair(prompt, after, flat=True)


def together(model: nn.Module, pair: Pair) -> nn.Module:
    """The model, called by the one method for a prompt and by the other for single tokens."""
    first = signature_of(through(model, pair.prompt))
    then = signature_of(through(model, pair.after))
    return called_by(model, lambda one: _either(one, pair, first, then))


def _either(
    model: nn.Module, pair: Pair, first: Signature, then: Signature
) -> Callable[..., object]:
    """What is called with the arguments of the method for single tokens."""
    prompt, after = getattr(model, pair.prompt), getattr(model, pair.after)
    declared = inspect.Signature(parameters_of(after))
    takes = {one.name for one in first.parameters}
    asked = {one.name: True for one in first.of("flag") if one.turns_cache_on}

    def run(*args: object, **named: object) -> object:
        given = declared.bind(*args, **named).arguments
        assert then.ids is not None
        assert first.ids is not None
        ids = given.pop(then.ids.name)
        if _begins(ids, given, then):
            shared = asked | {name: value for name, value in given.items() if name in takes}
            return prompt(**{first.ids.name: ids}, **shared)
        token = ids.reshape(-1) if pair.flat and isinstance(ids, Tensor) else ids
        return after(**{then.ids.name: token}, **given)

    run.__signature__ = declared  # type: ignore[attr-defined]
    return run


def _begins(ids: object, given: dict[str, object], then: Signature) -> bool:
    """Whether a call is that of a prompt: of several tokens, or of one with nothing before it.

    Sequences of a batch are no tokens of one text.
    """
    if isinstance(ids, Tensor) and ids.shape[-1] > 1:
        return True
    nothing = [one.name for one in then.of("cache") if one.name in given]
    places = [given[one.name] for one in then.of("position") if one.name in given]
    return any(given[name] is None for name in nothing) or any(
        isinstance(place, int) and place == 0 for place in places
    )
