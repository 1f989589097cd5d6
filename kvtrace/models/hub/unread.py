"""Which weight file it is that can't be read, looked for once reading has failed.

What transformers and safetensors raise names a tensor or a key, and no file.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from kvtrace.models.hub.weights import INDEX, PICKLE, PICKLE_INDEX, SAFETENSORS, Weights
from kvtrace.text import said_by


def unread(folder: Path, weights: Weights) -> str:
    """What is wrong with which file; empty: nothing that can be seen from outside.

    Args:
        folder: Of the model.
        weights: Its weight files; pickles are not opened.
    """
    damaged = (_damage(file) for file in weights.files if not weights.pickled)
    return next(filter(None, damaged), "") or _without_metadata(folder, weights)


def _damage(file: Path) -> str:
    try:
        with safe_open(file, "pt"):
            return ""
    except (SafetensorError, OSError) as error:
        return f"{file.name}: {said_by(error)}; copy or download the file again"


def _without_metadata(folder: Path, weights: Weights) -> str:
    """An index that lacks what transformers takes for granted."""
    index = folder / (PICKLE_INDEX if weights.pickled else INDEX)
    if weights.files[0].name in (SAFETENSORS, PICKLE) or not index.is_file():
        return ""
    found = json.loads(index.read_bytes()).get("metadata")
    if isinstance(found, dict):
        return ""
    what = "none" if found is None else type(found).__name__
    return (
        f"{index.name}, metadata: found {what}, expected an object; transformers reads no shards "
        'without one: add "metadata": {}'
    )
