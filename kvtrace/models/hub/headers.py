"""The table of contents of safetensors files, read without torch and without trust.

The header says which tensors a file holds, so a configuration can be judged before anything is
built from it. Format: 8 bytes little-endian length, then JSON, then the data (safetensors
README). Knows nothing of models.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

from msgspec import Struct

from kvtrace.errors import ModelError
from kvtrace.text import safe

_MAX_HEADER_BYTES = 100_000_000
_LFS_POINTER = b"version https://git-lfs"
_ZIP, _HTML = b"PK\x03\x04", b"<"


class Header(Struct, frozen=True):
    """What one safetensors file holds.

    Attributes:
        shapes: Shape of each tensor by name.
    """

    shapes: dict[str, tuple[int, ...]]

    @property
    def elements(self) -> int:
        """Numbers in all tensors together."""
        return sum(prod(shape) for shape in self.shapes.values())


def read_header(path: Path) -> Header:
    """Read and check the header of one file; the data must be there to its last byte.

    Raises:
        ModelError: Not a safetensors file, a git-lfs pointer, or cut off; says which.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise ModelError(
                f"{path.name}: a git-lfs pointer of {size} bytes, not the weights themselves; "
                "run `git lfs pull` in the model's directory"
            )
        length = int.from_bytes(start[:8], "little")
        if size < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise ModelError(_not_safetensors(path, size, start))
        file.seek(8)
        raw = file.read(length)
    shapes, data_bytes = _entries(path, raw)
    if 8 + length + data_bytes > size:
        raise ModelError(
            f"{path.name}: cut off: {size} bytes of {8 + length + data_bytes}; copy or "
            "download the file again"
        )
    return Header(shapes)


def _not_safetensors(path: Path, size: int, start: bytes) -> str:
    looks = ""
    if start.startswith(_ZIP):
        looks = " (a zip: a pickled checkpoint under another name?)"
    elif start.lstrip().startswith(_HTML):
        looks = " (an HTML page: a failed download?)"
    return f"{path.name}: {size} bytes that are not safetensors{looks}; download the file again"


def _entries(path: Path, raw: bytes) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes by name, and where the data ends."""
    try:
        table = json.loads(raw)
        entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
        shapes = {name: tuple(_naturals(entry["shape"])) for name, entry in entries.items()}
        ends = [_naturals(entry["data_offsets"])[1] for entry in entries.values()]
    except (ValueError, AttributeError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise ModelError(
            f"{path.name}: its header is damaged ({safe(str(error), 80)}); "
            "copy or download the file again"
        ) from None
    return shapes, max(ends, default=0)


def _naturals(values: object) -> list[int]:
    """A list of integers from 0, or a ValueError."""
    if not isinstance(values, list) or not all(type(n) is int and n >= 0 for n in values):
        raise ValueError("a list of non-negative integers is expected")
    return values
