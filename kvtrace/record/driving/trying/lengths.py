"""How long a text a model may ask for, where it can't be called with a few tokens.

It may look back over a prefix, or take blocks, or one number of tokens and no other. Numbers that
it holds itself say it best.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from kvtrace.record.driving.trying.evidence import PREFILL, STEPS
from kvtrace.record.driving.wish import Wish

_LENGTH = re.compile(
    r"len|ctx|context|block|prefix|window|chunk|segment|position|n_tok|num_tok|latent|max_t|size",
    re.IGNORECASE,
)
_LONGEST = 4096
_MOST = 12
_PLAIN = (16, 64, 256, 1024)


def lengths(model: nn.Module, wish: Wish) -> Iterator[int]:
    """Tokens to try with, each once: those of the run first.

    Args:
        model: That takes no few.
        wish: What is to be driven.
    """
    short, asked = PREFILL + STEPS, len(wish.prompt)
    held = sorted(
        {
            value
            for module in model.modules()
            for name, value in _numbers(module)
            if short < value <= _LONGEST and _LENGTH.search(name)
        }
    )
    first = [asked, asked + STEPS]
    told = [one for number in held for one in (number, number + short)]
    found = dict.fromkeys(one for one in (*first, *told, *_PLAIN) if one > short)
    fitting = [one for one in found if not wish.context or one <= wish.context]
    yield from fitting[:_MOST]


def _numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Whole numbers that a module or its configuration holds, by name."""
    for name, value in vars(module).items():
        if type(value) is int:
            yield name, value
        elif not name.startswith("_") and hasattr(value, "__dict__") and not callable(value):
            held = vars(value).items()
            yield from ((inner, one) for inner, one in held if type(one) is int)
