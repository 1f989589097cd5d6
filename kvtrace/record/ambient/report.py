"""What came of a recording without a model object: the traces, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

from kvtrace.trace import Meta

if TYPE_CHECKING:
    from kvtrace.record.recording import Recording


class ModelReport(Struct, frozen=True):
    """One trace that was written.

    Attributes:
        path: Where it is.
        model: Class of the model.
        steps: Forwards in it.
        texts: Prompts they began with.
        sites: Places that attended, each once, whichever caches it read.
        lanes: Names of the lanes it was compared with.
        unseen: What was not seen, in sentences.
    """

    path: Path
    model: str
    steps: int
    texts: int
    sites: int
    lanes: tuple[str, ...]
    unseen: tuple[str, ...]


class Report(Struct, frozen=True):
    """What came of it.

    Attributes:
        traces: Those that were written.
        said: Sentences: what was not recorded, and why.
        silent: Classes of models that were called with tokens and did not attend → calls.
        others: Classes of modules that were called without tokens → calls.
    """

    traces: tuple[ModelReport, ...] = ()
    said: tuple[str, ...] = ()
    silent: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)


def of_model(recording: Recording, meta: Meta, name: str) -> ModelReport:
    """Of one model's trace, which was written.

    Args:
        recording: That is over.
        meta: What is true of it all.
        name: Class of the model.
    """
    return ModelReport(
        recording.path,
        name,
        recording.steps,
        recording.num_texts,
        len({(site.module, site.call) for site in meta.sites}),  # one with a cache and without
        tuple(lane.name for lane in meta.lanes),
        meta.unseen,
    )
