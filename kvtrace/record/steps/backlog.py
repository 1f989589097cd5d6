"""Steps that are not in the file yet: they wait for the token chosen after them, or for company.

Steps like the one before are worked out and written several at a time, which costs far less than
one by one. The last step always waits for its token; others never longer than `LONGEST_NS`, also
when the model is called no more: what a process that is killed loses is no more than that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

from kvtrace.files import StepRows
from kvtrace.record.capture.clock import Took
from kvtrace.record.steps.steady import WaitingStep
from kvtrace.trace import Step

MOST, MOST_BYTES = 16, 32 << 20
"""Steps that wait for company, and memory that they take."""

LONGEST_NS = 100_000_000

Chosen = tuple[int | None, ...]


@dataclass(slots=True)
class Waiting:
    """A step that waits.

    Attributes:
        step: It; if it is `kept`, without what is worked out later.
        took: How long its forward took.
        caches: Serial numbers of the caches it used.
        rows: Its rows, unless it is `kept`.
        kept: What must still be worked out.
        told: Token chosen after it, per sequence.
        spent_ns: Our own time.
    """

    step: Step
    took: Took
    caches: frozenset[int]
    rows: StepRows | None = None
    kept: WaitingStep | None = None
    told: Chosen | None = None
    spent_ns: int = 0


class Backlog:
    """Steps that wait, in order; whoever touches it holds its lock.

    Attributes:
        lock: Of everything that writes steps.
        steps: Those that wait.
    """

    def __init__(self, write: Callable[[Sequence[Waiting]], None]) -> None:
        """Nothing waits.

        Args:
            write: Writes steps; called from another thread, too, with the lock.
        """
        self.lock = threading.RLock()
        self.steps: list[Waiting] = []
        self._write = write
        self._told = 0
        self._since = 0
        self._wake, self._closed = threading.Event(), threading.Event()
        self._clock: threading.Thread | None = None

    @property
    def untold(self) -> Sequence[Waiting]:
        """Those whose token somebody may still tell."""
        return self.steps[self._told :]

    def add(self, waiting: Waiting) -> None:
        """One more."""
        self.steps.append(waiting)

    def told(self) -> None:
        """What is known of the tokens chosen after them is said; they wait for company only."""
        if self._told == 0 and self.steps:
            self._since = perf_counter_ns()
            if self.steps[0].kept is not None:
                self._watch_time()
        self._told = len(self.steps)

    def due(self) -> bool:
        """Whether they must be written now, or would wait too long while a step like these runs."""
        if not self.steps:
            return False
        last = self.steps[-1]
        if last.kept is None or len(self.steps) >= MOST:
            return True
        until = perf_counter_ns() + last.step.elapsed_ns
        return until - self._since > LONGEST_NS or len(self.steps) * last.kept.nbytes > MOST_BYTES

    def take(self, *, untold: bool = True) -> list[Waiting]:
        """Those that wait, which they do no more.

        Args:
            untold: Those whose token nobody told yet, too.
        """
        end = len(self.steps) if untold else self._told
        taken, self.steps, self._told = self.steps[:end], self.steps[end:], 0
        return taken

    # -- when the model is called no more ---------------------------------------------------

    def _watch_time(self) -> None:
        """From now on somebody looks at the time, too."""
        if self._clock is None and not self._closed.is_set():
            self._clock = threading.Thread(target=self._look, daemon=True)
            self._clock.start()
        if not self._wake.is_set():
            self._wake.set()

    def _look(self) -> None:
        """Write what has waited too long; runs in a thread."""
        while self._wake.wait() and not self._closed.wait(LONGEST_NS / 1e9):
            with self.lock:
                waited = perf_counter_ns() - self._since
                if self._told and waited < LONGEST_NS:
                    continue
                self._wake.clear()
                self._write(self.take(untold=False))

    def close(self) -> None:
        """Nothing is added any more."""
        self._closed.set()
        self._wake.set()
        if self._clock is not None and self._clock is not threading.current_thread():
            self._clock.join(timeout=10)  # a busy machine takes its time; a dead disk forever
