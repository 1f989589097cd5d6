"""A model's config.json, read as data and judged before anything is built from it.

Numbers are bounded by what the weight files really hold, so that no configuration can make the
builder run for ever. Knows JSON, not transformers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from kvtrace.errors import ModelError, TrustError
from kvtrace.models.hub.weights import Weights
from kvtrace.text import safe

CONFIG = "config.json"
_MAX_BYTES, _MAX_DEPTH = 16 << 20, 64
_LARGEST = 1 << 53
# Sizes of buffers and patterns that weights say nothing about stay below this.
_UNWEIGHED = 1 << 24
_LOOPS = re.compile(r"(^|_)(layers?|blocks|stages|depths?|loops|cycles)(_|$)")
_POINTED_AT = re.compile(r"(?<!^n)(?<!_n)(?<!num)_layer$")
"""A layer that others begin from, like `vision_feature_layer`: negative ones count from the end."""
_EXPERTS = re.compile(r"(^|_)experts($|_)")
_SIZES = re.compile(r"(?<!chunk)(^|_)(size|sizes|dim|dims|rank|heads?|embd|inner|model|ff|width)$")
_NOT_A_COUNT = re.compile(
    r"(idx|id|ids|index|indices|period|interval|freq|step|offset|size|dim|type|types|every|window"
    r"|length|norm|eps|epsilon|drop|init|scale|std|prob|bias|start|end|frequency|layerdrop)($|_)"
)

Json = dict[str, object]


def read_config(folder: Path) -> Json:
    """Parse config.json.

    Raises:
        ModelError: There is none, or as of `read_json`.
    """
    if not (folder / CONFIG).is_file():
        raise ModelError(_without(folder))
    return read_json(folder, CONFIG)


def read_json(folder: Path, name: str) -> Json:
    """Parse a file of a directory that is there.

    Raises:
        ModelError: It is too large or deep, or not a JSON object.
    """
    path = folder / name
    if path.stat().st_size > _MAX_BYTES:
        raise ModelError(f"{name}: {path.stat().st_size} bytes; a configuration is smaller")
    raw = path.read_bytes()
    if raw.startswith(b"version https://git-lfs"):
        raise ModelError(f"{name}: a git-lfs pointer; run `git lfs pull` in its directory")
    try:
        values = json.loads(raw.decode("utf-8"))  # bytes would be taken in other encodings, too
    except UnicodeDecodeError:
        raise ModelError(f"{name}: not UTF-8; save it again in that encoding") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name}: not JSON ({safe(str(error), 100)})") from None
    if not isinstance(values, dict):
        raise ModelError(f"{name}: {type(values).__name__} where a JSON object is expected")
    if _deeper_than(values, _MAX_DEPTH):
        raise ModelError(f"{name}: nested more than {_MAX_DEPTH} deep")
    return values


def _without(folder: Path) -> str:
    """What is said of a directory whose configuration can't be read."""
    if os.path.lexists(folder / CONFIG):
        return f"{CONFIG}: not a regular file, or a link that leads to none; copy the file itself"
    if packed := sorted(folder.glob("*.gguf")):
        return (
            f"{safe(packed[0].name)}: weights packed for llama.cpp, without a {CONFIG}; take the "
            "model's repository in safetensors format"
        )
    return f"no {CONFIG} in the model's directory; it must be one that save_pretrained() wrote"


def check_sizes(config: Json, weights: Weights) -> None:
    """Compare every number in the configuration with what the weight files hold.

    A model with n layers has at least n tensors; one with n experts has n tensors or a tensor
    with n rows; no dimension exceeds the number of elements. Pickles can't be looked into, so
    for them only the absolute bound holds.

    Raises:
        ModelError: A number is impossible; says which, and what the weights hold.
    """
    tensors = len(weights.shapes) or _UNWEIGHED >> 12
    rows = max((max(shape, default=0) for shape in weights.shapes.values()), default=_UNWEIGHED)
    for path, value in _numbers(config):
        key, where = path[-1], ".".join(path)
        if abs(value) > _LARGEST:
            raise ModelError(f"{CONFIG}, {where}: {value:.3g} is beyond any model")
        if not isinstance(value, int):
            continue
        counted = not (_NOT_A_COUNT.search(key) or _POINTED_AT.search(key))
        looped = bool(_LOOPS.search(key)) and counted
        several = bool(_EXPERTS.search(key))
        if value < 0 and (looped or several or _SIZES.search(key)):
            raise ModelError(f"{CONFIG}, {where}: {value}; it must not be negative")
        if looped and value > tensors:
            raise ModelError(_too_many(where, value, f"{tensors} tensors"))
        if several and value > max(tensors, rows):
            raise ModelError(_too_many(where, value, f"{tensors} tensors of at most {rows} rows"))
        if _SIZES.search(key) and value > max(weights.elements, _UNWEIGHED):
            raise ModelError(_too_many(where, value, f"{weights.elements} numbers"))


def code_files(config: Json) -> list[str]:
    """Python files that a configuration names; `owner/repo--file.py` is in another repository."""
    named = config.get("auto_map")
    if not isinstance(named, dict):
        return []
    return sorted({_code_file(value) for value in named.values()} - {""})


def needs_trust(files: list[str], where: str, commit: str) -> TrustError:
    """The refusal to run a repository's own code.

    Args:
        files: That would run.
        where: File that names them.
        commit: Of the repository, where known.
    """
    at = f" at commit {commit[:12]}" if commit else ""
    return TrustError(
        f"{where}: this model needs code from its own repository{at}: "
        f"{safe(', '.join(files) or 'auto_map')}; read it, then pass --trust-remote-code"
    )


def _code_file(reference: object) -> str:
    """`modeling_x.py` of `owner/repo--modeling_x.ModelX`, the repository kept."""
    if isinstance(reference, list):
        return next((name for part in reference if (name := _code_file(part))), "")
    module, _, _ = str(reference or "").rpartition(".")
    return f"{module}.py" if module else ""


def _too_many(where: str, value: int, held: str) -> str:
    return f"{CONFIG}, {where}: {value}, but the weight files hold only {held}"


def _deeper_than(values: Json, limit: int) -> bool:
    """Whether objects and lists are nested more than `limit` deep."""
    level: list[Json | list[object]] = [values]
    for _ in range(limit + 1):
        parts = (list(part.values()) if isinstance(part, dict) else part for part in level)
        level = [inner for part in parts for inner in part if isinstance(inner, dict | list)]
    return bool(level)


def _numbers(values: object) -> Iterator[tuple[tuple[str, ...], int | float]]:
    """Every number with the keys that lead to it; list places are not part of the path."""
    todo: list[tuple[tuple[str, ...], object]] = [((), values)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, dict):
            todo += [((*path, safe(str(key), 60)), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            todo += [(path, inner) for inner in value]
        elif isinstance(value, int | float) and not isinstance(value, bool) and path:
            yield path, value
