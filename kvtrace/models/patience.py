"""Waiting with a limit: foreign work that may never end, watched for signs of life.

The work runs in a daemon thread while the caller waits, so Ctrl-C works and a thread that is
stuck dies with the process. Knows nothing of what it waits for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from msgspec import Struct

from kvtrace.errors import KvtraceError

T = TypeVar("T")
_POLL_SECONDS = 0.05


class Patience(Struct, frozen=True):
    """How long to wait, in seconds without a sign of life.

    Attributes:
        connect_s: For the hub to accept a connection.
        answer_s: For the hub to answer a question.
        download_s: Between two pieces of a file (they come in 10 MB pieces).
        build_s: For a model to be built without its weights, or a tokenizer to be read.
    """

    connect_s: float = 5.0
    answer_s: float = 20.0
    download_s: float = 180.0
    build_s: float = 120.0


class _Work(Generic[T]):
    """A call in a thread, and what came of it."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self.result: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result.append(self._call())
        except BaseException as error:
            self.error = error


def patiently(
    call: Callable[[], T],
    quiet_s: float,
    stuck: Callable[[], KvtraceError],
    pulse: Callable[[], object] = lambda: None,
) -> T:
    """Run a call; give up when nothing moved for a while.

    Args:
        call: The work; its result is returned and its exception raised here.
        quiet_s: Seconds without a change of `pulse` until it counts as stuck.
        stuck: Makes the error to raise then.
        pulse: A value that changes while the work advances.
    """
    work = _Work(call)
    thread = threading.Thread(target=work.run, name="kvtrace-load", daemon=True)
    thread.start()
    seen, since = pulse(), time.monotonic()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        if (now := pulse()) != seen:
            seen, since = now, time.monotonic()
        if thread.is_alive() and time.monotonic() - since > quiet_s:
            raise stuck()
    if work.error is not None:
        raise work.error
    return work.result[0]
