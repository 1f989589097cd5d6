"""What a script does in other processes: nobody watches there, and that is said."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

WORTH_S = 0.5
"""CPU time of other processes from which they may have run a model."""

EXEC = "the script goes on as another program (exec): what happens there is not recorded"
CHILDREN = "what the processes that it started do is not recorded: record in their own code"


def spent() -> float:
    """CPU seconds of processes that were started, and have ended."""
    times = os.times()
    return times.children_user + times.children_system


@contextlib.contextmanager
def exec_is_said(say: Callable[[str], None]) -> Iterator[None]:
    """Before this process becomes another program, that is said."""
    from kvtrace.record.capture.replaced.stand_in import in_place_of

    home, names = os.getpid(), ("execv", "execve")
    before: dict[str, Any] = {name: getattr(os, name) for name in names}

    def told(original: Callable[..., object]) -> Callable[..., object]:
        def run(*args: Any, **kwargs: Any) -> object:
            if os.getpid() == home:  # a fork that becomes another program is a child as any
                say(EXEC)
            return original(*args, **kwargs)

        made: Callable[..., object] = in_place_of(original, run)
        return made

    for name, original in before.items():
        setattr(os, name, told(original))
    try:
        yield
    finally:
        for name, original in before.items():
            setattr(os, name, original)
