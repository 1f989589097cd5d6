"""An independent count of the attentions in a model: softmaxes over the text, by who runs them.

Knows nothing of kvtrace. A softmax counts when what it sums to 1 grows with the text (routers and
mixers don't), a fused attention when its keys do.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from fractions import Fraction

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SOFTMAX = ("aten._softmax.", "aten._safe_softmax.")
FUSED = "scaled_dot_product"


def attending(model, forward, run, lengths=(11, 13)):
    """Module path to attentions in a run.

    Args:
        model: Any module.
        forward: Given a number of tokens, runs one forward over so many.
        run: Runs what is to be counted.
        lengths: Two numbers of tokens.
    """
    short, long = (_counted(model, lambda n=n: forward(n)) for n in lengths)
    whole = _counted(model, run)
    return Counter(
        {
            path: len(widths) * share
            for path, widths in whole.items()
            if (share := _share(short.get(path, ()), long.get(path, ())))
        }
    )


def _share(short, long):
    """How many of a module's softmaxes are over the text."""
    if len(short) != len(long):
        # as many as there are parts of the text
        return 1
    if not short:
        return 0
    return Fraction(sum(x != y for x, y in zip(short, long, strict=True)), len(short))


def _counted(model, run):
    """Module path to the widths of its softmaxes, fused attentions included."""
    widths = {}
    with _whereabouts(model) as stack, _Softmaxes(stack, widths), torch.no_grad():
        run()
    return widths


class _Softmaxes(TorchDispatchMode):
    def __init__(self, stack, widths):
        super().__init__()
        self.stack, self.widths = stack, widths

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = str(func)
        if FUSED in name:
            self._add(args[1].shape[-2])
        elif name.startswith(SOFTMAX) and result.dim() >= 3:
            self._add(result.shape[args[1]])
        return result

    def _add(self, width):
        path = self.stack[-1] if self.stack else ""
        self.widths.setdefault(path, []).append(width)


@contextmanager
def _whereabouts(model):
    """The modules running now, innermost last."""
    stack, handles = [], []

    def leave(*_):
        stack.pop()

    for path, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda *_, p=path: stack.append(p)),
            module.register_forward_hook(leave, always_call=True),
        ]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
