"""An independent count of the attentions in a model: softmaxes over the text, by who runs them.

Knows nothing of kvtrace. A softmax counts when what it sums to 1 grows with the text (routers and
mixers don't); a fused attention counts as one.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SOFTMAX = ("aten._softmax.", "aten._safe_softmax.")
FUSED = "scaled_dot_product"


def attending(model, run, lengths=(11, 13)):
    """Module path to attentions in one forward.

    Args:
        model: Any module.
        run: Given a number of tokens, runs one forward over so many.
        lengths: Two numbers of tokens.
    """
    short, long = (_counted(model, lambda n=n: run(n)) for n in lengths)
    found = Counter()
    for path in short.keys() | long.keys():
        a, b = short.get(path, []), long.get(path, [])
        if len(a) == len(b):
            found[path] = sum(x is None or x != y for x, y in zip(a, b, strict=True))
        else:
            # as many softmaxes as there are parts of the text
            found[path] = len(a)
    return Counter({path: count for path, count in found.items() if count})


def _counted(model, run):
    """Module path to the widths of its softmaxes; None for a fused attention."""
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
            self._add(None)
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
    for path, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda *_, p=path: stack.append(p)),
            module.register_forward_hook(lambda *_: stack.pop() and None, always_call=True),
        ]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
