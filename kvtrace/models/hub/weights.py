"""Which files of a directory hold the weights, and whether they may be read.

Safetensors are data; pickles are programs and need the user's word. Knows nothing of
configurations.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from msgspec import Struct

from kvtrace.errors import ModelError, TrustError
from kvtrace.models.hub.headers import read_header
from kvtrace.paths import is_file
from kvtrace.text import safe

SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_MAX_INDEX_BYTES = 64 << 20
_HASHED_WHOLE_BYTES = 256 << 20
_OTHER_FORMATS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")


class Weights(Struct, frozen=True):
    """The weight files of a model.

    Attributes:
        files: In the order of their names.
        pickled: They are pickles: shapes stay empty, since reading them would run them.
        shapes: Shape of every tensor by name.
        elements: Numbers in all tensors together.
    """

    files: tuple[Path, ...]
    pickled: bool
    shapes: dict[str, tuple[int, ...]]
    elements: int

    @property
    def file_bytes(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.files)

    def pin(self) -> str:
        """A hash over the files, or empty when they are too large to read for it."""
        if self.file_bytes > _HASHED_WHOLE_BYTES:
            return ""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.read_bytes())
        return f"sha256:{digest.hexdigest()[:16]}"


def find_weights(folder: Path, allow_pickle: bool) -> Weights:
    """Find and check the weight files.

    Raises:
        ModelError: None there, one missing, or one damaged.
        TrustError: Only pickles, and these are not allowed.
    """
    if files := _listed(folder, SAFETENSORS, INDEX):
        headers = [read_header(file) for file in files]
        shapes = {name: shape for header in headers for name, shape in header.shapes.items()}
        return Weights(files, False, shapes, sum(header.elements for header in headers))
    if files := _listed(folder, PICKLE, PICKLE_INDEX):
        if not allow_pickle:
            raise TrustError(
                f"{files[0].name}: the weights are only there as a pickle, which can run any "
                f"code when it is read; look for a repository with {SAFETENSORS}, or pass "
                "--allow-pickle"
            )
        return Weights(files, True, {}, 0)
    raise ModelError(_nothing_usable(folder))


def _nothing_usable(folder: Path) -> str:
    if any(os.path.lexists(folder / name) for name in (SAFETENSORS, INDEX)):
        return f"{SAFETENSORS}: not a regular file, or a link that leads to none; copy the file"
    others = sorted({file.name for form in _OTHER_FORMATS for file in folder.glob(form)})
    found = f" (found: {safe(', '.join(others[:4]))})" if others else ""
    return f"no {SAFETENSORS} or {INDEX} in the model's directory{found}; save it as safetensors"


def _listed(folder: Path, single: str, index: str) -> tuple[Path, ...]:
    """The single file, or the shards that the index names; empty when there is neither."""
    if (folder / single).is_file():
        return (folder / single,)
    if not (folder / index).is_file():
        return ()
    names = shard_names(folder / index)
    missing = [name for name in names if not is_file(folder / name)]
    if missing:
        raise ModelError(
            f"{index}: {len(missing)} of {len(names)} weight files are missing, the first is "
            f"{safe(missing[0])}; copy or download them"
        )
    return tuple(folder / name for name in names)


def shard_names(index: Path) -> list[str]:
    """File names that an index of weight files speaks of.

    Raises:
        ModelError: Not such an index, or a name that leaves the directory.
    """
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError(f"more than {_MAX_INDEX_BYTES} bytes")
        names = sorted(
            {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{index.name}: not an index of weight files ({safe(str(error), 80)})"
        ) from None
    for name in names:
        if Path(name).name != name or name in ("", "..", "."):
            raise ModelError(f"{index.name}: {safe(name)!r} is not a plain file name; refused")
    if not names:
        raise ModelError(f"{index.name}: it names no weight file")
    return names
