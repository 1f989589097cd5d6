"""What the updates of a pass did to their caches, as it shows once the pass is over."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from kvtrace.record.capture.caches.held import layer_of, length
from kvtrace.record.capture.caches.memory import held_memory
from kvtrace.record.capture.caches.reached import reached
from kvtrace.record.capture.caches.tracker import CacheTracker
from kvtrace.record.capture.forward import CacheUpdate
from kvtrace.record.capture.running import Pass, RawUpdate, Verdict
from kvtrace.record.theirs import CACHE, DYNAMIC_LAYER, PLAIN_LAYERS
from kvtrace.record.whose import of_transformers


def updates_of(tracker: CacheTracker, one: Pass, cross: object) -> tuple[CacheUpdate, ...]:
    """The updates of a pass that is over; what the caches hold now is noted.

    Of one that handed out no rows, or something else in their place, nothing is known.

    Args:
        tracker: Notes it.
        one: The pass.
        cross: The second half of an encoder-decoder cache, if there is one.
    """
    handed: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
    out = []
    for raw in one.updates:
        if not _handed_rows(raw):
            continue
        cache, index = raw[0], raw[1]
        verdict = one.verdicts[id(cache)].get(index, (True, None))
        part = "cross" if cache is cross else "self"
        out.append(_finished(raw, tracker.serial(cache), part, verdict))
        handed.setdefault(id(cache), {})[index] = raw[4]
    for cache in {id(raw[0]): raw[0] for raw in one.updates if id(raw[0]) in handed}.values():
        tracker.note(cache, handed[id(cache)], one.verdicts[id(cache)])
    return tuple(out)


def _handed_rows(raw: RawUpdate) -> bool:
    """Whether rows came out of an update that rows went into."""
    _, _, given, _, out = raw
    rows = [isinstance(one, Tensor) and one.dim() == 4 and one.shape[2] > 0 for one in out]
    return all(rows) or given.shape[2] == 0


def _finished(raw: RawUpdate, serial: int, part: str, verdict: Verdict) -> CacheUpdate:
    """The update as the rest of `record` knows it, once its forward is over."""
    cache, index, new_keys, new_values, out = raw
    layer = layer_of(cache, index)
    kind = type(layer)
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if not isinstance(keys, Tensor) or keys.dim() != 4:
        keys = values = None
    if kind is DYNAMIC_LAYER.there():
        # by far the most frequent: nothing to ask
        capacity = window = None
        seen = out[0].shape[2] if keys is None else keys.shape[2]
    else:
        seen = length(layer) if layer is not None else out[0].shape[2]
        capacity, window = getattr(layer, "max_cache_len", None), None
        seen = seen if _is_plain(kind) else reached(seen, new_keys, out[0], capacity)
        if getattr(layer, "is_sliding", False):
            window = getattr(layer, "sliding_window", capacity)
    return CacheUpdate(
        serial,
        index,
        part,
        _name(kind),
        new_keys,
        new_values,
        *out,
        keys,
        values,
        seen,
        capacity if isinstance(capacity, int) else None,
        window if isinstance(window, int) else None,
        verdict[0],
        keys is None or keys is out[0] or capacity is not None or _part_of(keys, out[0]),
        _as_written(cache) and _as_written(layer),
        verdict[1],
        None if _is_plain(kind) else held_memory(cache, index, layer),
    )


def _is_plain(kind: type) -> bool:
    """Whether layers of this class hold keys and values and nothing else."""
    return any(kind is one.there() for one in PLAIN_LAYERS)


def _part_of(keys: Tensor, out: Tensor) -> bool:
    """Whether what a layer keeps is a view of what it handed back: the end of it, or all."""
    return keys.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()


def _name(kind: type) -> str:
    """What transformers calls a layer of this class, or the class it is made from."""
    found = _names.get(kind)
    if found is None:
        theirs = (one for one in kind.__mro__ if one.__module__ == CACHE.module)
        found = _names[kind] = next(theirs, kind).__name__
    return found


_names: dict[type, str] = {}


def is_theirs(method: object) -> bool:
    """Whether a method is as transformers wrote it, under our own patch if there is one."""
    code = getattr(method, "__code__", None)
    return code is not None and "transformers" in Path(code.co_filename).parts


def _as_written(one: object) -> bool:
    """Whether a cache or a layer does what transformers wrote, and has no `update` of its own."""
    return "update" not in getattr(one, "__dict__", ()) and _is_known(type(one))


def _is_known(kind: type) -> bool:
    """Whether a class does what transformers wrote, its `update` not replaced by somebody."""
    update = getattr(kind, "update", None)
    found = _known.get((kind, update))
    if found is None:
        ours = of_transformers(kind) and is_theirs(update)
        found = _known[kind, update] = ours and "Quantized" not in kind.__name__
    return found


_known: dict[tuple[type, object], bool] = {}
