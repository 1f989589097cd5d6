"""What a model is tried with: private copies, a few tokens, and what its output may look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from kvtrace.errors import ModelError
from kvtrace.record.driving.trying.evidence import FEW, STEPS, Trials
from kvtrace.record.driving.trying.observe import observed
from kvtrace.record.driving.trying.private import private_copy
from kvtrace.record.driving.ways.calls import Shape
from kvtrace.record.driving.ways.roles import signature_of
from kvtrace.record.driving.ways.sizes import Sizes
from kvtrace.record.driving.ways.way import Way
from kvtrace.record.driving.wish import Wish
from kvtrace.text import said_by


def trials_of(model: nn.Module, wish: Wish, count: int = FEW) -> Trials:
    """A place to try ways of calling a model.

    Args:
        model: Never called itself; only copies of it are.
        wish: What is known of it.
        count: Tokens to try with.

    Raises:
        ModelError: It can't be copied, nor made again.
    """
    shape = shape_of(model, wish)
    vocabulary = shape.vocab_sizes[0] if shape.vocab_sizes else 0
    tokens = _tokens(wish.prompt, vocabulary, wish.context, count)
    prefill = max(1, len(tokens) - STEPS)
    return Trials(_copier(model, wish), model, tokens, prefill, shape, wish.script)


def shape_of(model: nn.Module, wish: Wish) -> Shape:
    """What the model's output may look like."""
    sizes = Sizes(model, 0)
    vocabulary = wish.vocabulary or sizes.of("vocabulary") or 0
    width = sizes.of("width") or 0
    linear = [one.out_features for one in model.modules() if isinstance(one, nn.Linear)]
    heads = sorted(set(linear) - {vocabulary, width}, reverse=True)
    return Shape((vocabulary, *heads) if vocabulary else (), width)


def given_by_theirs(model: nn.Module, wish: Wish) -> set[str]:
    """What their own generation passes by name, where it feeds single tokens; else nothing.

    Raises:
        ModelError: The model can't be copied, nor made again.
    """
    theirs = observed(trials_of(model, wish), signature_of(model))
    return {name for call in theirs.calls for name in call}


def takes(model: nn.Module, wish: Wish, way: Way, count: int) -> bool:
    """Whether a call with so many tokens goes well."""
    return trials_of(model, wish, count).plain(way).verdict != "fails"


def _copier(model: nn.Module, wish: Wish) -> Callable[[], nn.Module]:
    """Private copies; where that fails, new models from the factory."""
    try:
        private_copy(model)
    except Exception as error:
        if wish.remake is None:
            cause = said_by(error, 200)
            raise ModelError(
                f"{type(model).__name__} can't be copied to try how it is called "
                f"({cause}); add step(model, ids, cache, pos) to your file"
            ) from error
        return wish.remake
    return lambda: private_copy(model)


def _tokens(prompt: Sequence[int], vocabulary: int, context: int, count: int) -> list[int]:
    """Different ids, the prompt's first.

    Args:
        prompt: What the run begins with.
        vocabulary: Ids that there are; 0: that is not known.
        context: Tokens that the model takes at most; 0: any number.
        count: How many.
    """
    if context:
        count = min(count, context)
    found = list(dict.fromkeys(prompt))
    limit = vocabulary or max(found, default=0) + 1
    found += [one for one in range(min(limit, 10 * count)) if one not in found]
    found = found[:count]
    while len(found) < count:  # a vocabulary smaller than the trial
        found.append(found[len(found) % max(1, limit)])
    return found
