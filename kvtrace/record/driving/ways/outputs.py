"""The logits, and what may be a cache, in whatever a model returned: told by shapes and names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from msgspec import Struct
from torch import Tensor

from kvtrace.errors import ModelError

_FEW = 8
"""So few tokens are fed whole."""

Path = tuple[str | int, ...]
_CACHES = ("past", "cache", "kv", "present", "state", "intermediate", "mems", "hidden")
_LOGITS = ("logits", "lm_logits", "logit", "prediction_scores", "scores", "preds", "output")


class Logits(Struct, frozen=True):
    """Where the logits are.

    Attributes:
        path: To the tensor: attributes, keys and places; empty where it is what was returned.
        rows: Of the fed tokens, how many rows it has.
        across: The vocabulary is the second dimension, not the last.
    """

    path: Path
    rows: int
    across: bool = False


class NoLogitsError(ModelError):
    """Nothing returned can be logits; the message says what was returned."""


def find_logits(
    result: object, fed: int, vocab_sizes: tuple[int, ...], width: int, *, ahead: bool = False
) -> Logits:
    """The tensor with a score for every token of the vocabulary.

    Args:
        result: What the model returned.
        fed: Tokens it was given.
        vocab_sizes: What the vocabulary may be, the likeliest first; empty when unknown.
        width: Of the hidden rows; 0 when unknown.
        ahead: It read more than tokens: rows of that may come before theirs.

    Raises:
        NoLogitsError: There is none.
    """
    tensors = [(path, one) for path, one in _tensors(result, (), 2) if one.is_floating_point()]
    named = [each for each in tensors if each[0] and str(each[0][-1]).lower() in _LOGITS]
    for path, tensor in [*named, *tensors]:
        by_name = bool(path) and "logit" in str(path[-1]).lower()
        for size in vocab_sizes:
            if found := _rows(path, tensor, fed, size):
                return found
        free = (by_name or not vocab_sizes) and tensor.dim() and tensor.shape[-1] not in (1, width)
        if free and (found := _rows(path, tensor, fed, tensor.shape[-1])):
            return found
    for path, tensor in tensors if ahead else ():
        if tensor.dim() == 3 and tensor.shape[0] == 1 and tensor.shape[2] in vocab_sizes:
            return Logits(path, tensor.shape[1])
    raise NoLogitsError(_complaint(result, tensors, fed, vocab_sizes, width))


def last_row(result: object, where: Logits) -> Tensor:
    """Logits of the last token, [vocab]."""
    return all_rows(result, where)[-1]


def all_rows(result: object, where: Logits) -> Tensor:
    """Logits of every row there is, [rows, vocab]."""
    found = part_of(result, where.path)
    if not isinstance(found, Tensor):
        raise NoLogitsError(f"it returned no logits at {spelled(where.path)} any more")
    if where.across:
        found = found.transpose(1, 2)
    return found.reshape(-1, found.shape[-1])


def _rows(path: Path, tensor: Tensor, fed: int, size: int) -> Logits | None:
    """Where a tensor scores `size` tokens for all rows fed, or for the last one.

    Or for the last ones of many, as a model does that looks back over a prefix.
    """
    if tensor.dim() == 0 or size < 2:
        return None
    if tensor.shape[-1] == size:
        rows = tensor.numel() // size
        last = _FEW < fed > rows and tuple(tensor.shape) == (1, rows, size)
        return Logits(path, rows) if last or rows in (fed, 1) else None
    if tensor.dim() == 3 and tuple(tensor.shape[:2]) == (1, size) and tensor.shape[2] in (fed, 1):
        return Logits(path, tensor.shape[2], across=True)
    return None


def _complaint(
    result: object,
    tensors: list[tuple[Path, Tensor]],
    fed: int,
    vocab_sizes: tuple[int, ...],
    width: int,
) -> str:
    if result is None:
        return "it returned None: is a return missing?"
    if isinstance(result, Tensor) and not tensors:
        kind = str(result.dtype).removeprefix("torch.")
        return f"it returned {kind} {list(result.shape)}; expected logits, of which ids are chosen"
    if not tensors:
        return f"it returned {type(result).__name__} without a tensor of floats"
    shapes = ", ".join(f"{list(one.shape)}" for _, one in tensors[:4])
    if all(one.dim() == 0 for _, one in tensors):
        return "it returned a single number, a loss perhaps, and no logits"
    if any(one.dim() and one.shape[-1] == width for _, one in tensors):
        return f"it returned hidden rows {shapes} and no logits; return the model with its head"
    wanted = f"{vocab_sizes[0]} scores" if vocab_sizes else "scores"
    return f"it returned {shapes}; expected {wanted} for each of {fed} tokens, or for the last"


def find_caches(result: object, logits: Logits) -> list[Path]:
    """Paths to what may be a cache in a result, the likeliest first."""
    parts: list[tuple[Path, object]] = []
    if isinstance(result, tuple | list):
        parts = [((place,), one) for place, one in enumerate(result)]
    elif isinstance(result, Mapping):
        parts = [((str(name),), one) for name, one in result.items()]
    elif not isinstance(result, Tensor):
        parts = [((name,), one) for name, one in _attributes(result)]
    taken = logits.path[:1]
    free = [(path, one) for path, one in parts if path != taken and _may_hold(one)]
    named = [path for path, _ in free if any(word in str(path[0]).lower() for word in _CACHES)]
    if named:
        return named
    # a container or an object is likelier a cache than a tensor, and the last one than the first
    objects = [path for path, one in free if not isinstance(one, Tensor)]
    tensors = [path for path, one in free if isinstance(one, Tensor) and one.dim() >= 2]
    return [*reversed(objects), *reversed(tensors)]


def _may_hold(value: object) -> bool:
    if value is None or isinstance(value, str | int | float | bool):
        return False
    if isinstance(value, tuple | list | dict) and not value:
        return False
    return not (isinstance(value, Tensor) and value.dim() < 2)


def part_of(result: object, path: Path) -> object:
    """What is at a path; None when it is not there."""
    for step in path:
        try:
            if isinstance(result, Mapping | tuple | list):
                result = result[step]  # type: ignore[index]
            else:
                result = getattr(result, str(step), None)
        except (LookupError, TypeError):
            return None
    return result


def spelled(path: Path) -> str:
    """A path for people: `the result`, `result[1]`, `result.logits`."""
    return "result" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    if is_dataclass(value) and not isinstance(value, type):
        yield from ((one.name, getattr(value, one.name, None)) for one in fields(value))
        return
    yield from list(getattr(value, "__dict__", {}).items())


def _tensors(value: object, path: Path, depth: int) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif depth and isinstance(value, Mapping):
        for name, one in value.items():
            yield from _tensors(one, (*path, str(name)), depth - 1)
    elif depth and isinstance(value, tuple | list):
        for place, one in enumerate(value):
            yield from _tensors(one, (*path, place), depth - 1)
    elif depth and value is not None:
        for name, one in _attributes(value):
            yield from _tensors(one, (*path, name), depth - 1)
