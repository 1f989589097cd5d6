"""From a request to a model that passed every check: the one way in.

Joins the parts; each check lives in the file named after it.
"""

from __future__ import annotations

from pathlib import Path

from kvtrace.models.directory import load_directory
from kvtrace.models.loaded import Loaded, Progress
from kvtrace.models.request import LoadRequest
from kvtrace.models.spec import parse_spec


def load(request: LoadRequest, progress: Progress) -> Loaded:
    """Find, check and load a model with its tokenizer and encoded prompt.

    Args:
        request: What the user asked for and allows.
        progress: Called with what is being done, and the share done where it is known.

    Raises:
        KvtraceError: UsageError, ModelError, HubError, MemoryLimitError or TrustError, each
            with one line that says what to do.
    """
    source = parse_spec(request.spec)
    progress(f"loading {source.name}", None)
    return load_directory(Path(source.place), source, request, progress)
