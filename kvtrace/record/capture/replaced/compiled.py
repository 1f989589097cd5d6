"""Compiled code runs eagerly while it is watched: what it attends to can't be seen otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from kvtrace.record.capture.replaced.arriving import finished, when_there
from kvtrace.record.capture.replaced.patch import Method, Patches

EAGERLY = "compiled code was run eagerly: its numbers and milliseconds are those of eager code"


def as_written(model: nn.Module) -> nn.Module:
    """A model without the wrapper that `torch.compile` puts around it.

    It runs whenever the wrapper is called; the wrapper has no forward of its own, and a copy of it
    calls the original.
    """
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    return model


@contextmanager
def eagerly() -> Iterator[None]:
    """Within, compiled code runs as it was written.

    A program without torch's compiler, which takes a second to import, is not made to import it.
    """
    finished(_COMPILER)
    with ExitStack() as stack:

        def take() -> None:
            stack.enter_context(torch.compiler.set_stance("force_eager"))

        stack.callback(when_there(_COMPILER, take))
        yield


_COMPILER = "torch._dynamo"


class Eagerly:
    """From `begin` to `stop` no code is compiled, and compiled code runs as it was written.

    Hooks inside a graph would be compiled with it, or break it, or never run. The stance is the
    process's: the first that begins takes it, the last that stops gives it back.

    Attributes:
        ran: Whether code that somebody had compiled was called meanwhile, in any thread.
    """

    def __init__(self) -> None:
        self.ran = False

    def begin(self) -> Callable[[], None]:
        """From now on; returns `stop`."""
        _CALLS.hold()
        try:
            _take_stance(self)
        except BaseException:
            _CALLS.release()
            raise
        return self.stop

    def stop(self) -> None:
        """Code is compiled again, if nobody else watches."""
        _give_stance_back(self)
        _CALLS.release()


_lock = threading.Lock()
_watching: list[Eagerly] = []
_stance = ExitStack()


def _take_stance(one: Eagerly) -> None:
    with _lock:
        if not _watching:
            _stance.enter_context(eagerly())
        _watching.append(one)


def _give_stance_back(one: Eagerly) -> None:
    with _lock:
        _watching.remove(one)
        if not _watching:
            _stance.close()


def _note_calls(patches: Patches) -> None:
    """Where torch asks what to do with a call of compiled code, it is told to whoever watches."""
    from torch._dynamo import eval_frame

    def make(original: Method) -> Method:
        def asked(callback: Callable[..., object] | bool | None) -> object:
            if callback is not None and callback is not False:
                for one in _watching:
                    one.ran = True
            return original(callback)

        return asked

    patches.replace(eval_frame, "_callback_from_stance", make)


_CALLS = Patches(_note_calls, needs=f"{_COMPILER}.eval_frame")
