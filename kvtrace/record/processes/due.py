"""When the other lanes of a recording are computed, which all ranks of a model do together."""

from __future__ import annotations

from kvtrace.errors import WriteError
from kvtrace.record.lanes import Lanes
from kvtrace.record.lanes.sink import LaneSink
from kvtrace.record.processes.companions import Companions
from kvtrace.record.steps.recorder import Recorder
from kvtrace.text import said_by
from kvtrace.trace import Ending, Note, Step

_ALONE = "not every rank that shares this model records, and it only runs on all of them together"


class Due:
    """Tells a recording's lanes when they are due."""

    def __init__(self, others: Companions | None) -> None:
        """Nothing yet.

        Args:
            others: The other ranks of the model; None: it runs in this process alone.
        """
        self._others = others

    def step(self, lanes: Lanes, step: Step, recorder: Recorder, writer: LaneSink) -> bool:
        """A step was written: run the pass beside it; whether there is one."""
        if lanes.options.mode != "each" or not self._agree(ready=True):
            return False
        try:
            recorder.meta = lanes.written(step, recorder.meta, writer)
        except WriteError as error:
            recorder.failure = error
        return True

    def so_far(self, lanes: Lanes, recorder: Recorder, writer: LaneSink) -> None:
        """The weights are about to change: compute what there is now."""
        if self._agree(ready=True):
            _finish(lanes, recorder, writer)

    def at_end(self, lanes: Lanes, recorder: Recorder, writer: LaneSink, ending: Ending) -> None:
        """The run is over; what came before an error is compared too, unless ranks would wait."""
        if self._agree(ready=ending.reason != "error" or self._others is None):
            _finish(lanes, recorder, writer)
        elif self._others is not None:
            writer.note(Note("note", f"the tokens were not recomputed: {_ALONE}"))

    def failed(self) -> None:
        """The recording failed; other ranks don't wait for this one."""
        self._agree(ready=False)

    def _agree(self, *, ready: bool) -> bool:
        return ready if self._others is None else self._others.agree(ready=ready)


def _finish(lanes: Lanes, recorder: Recorder, writer: LaneSink) -> None:
    """A model that can't be run without its cache is not the run's failure."""
    try:
        recorder.meta = lanes.finish(recorder.meta, writer)
    except WriteError:
        raise
    except Exception as error:
        cause = said_by(error)
        writer.note(Note("note", f"the tokens were not recomputed: {cause}"))
