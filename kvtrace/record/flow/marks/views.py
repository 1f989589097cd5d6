"""The axes of a marked tensor after a view, by the name of the function that made it.

Knows no numbers: shapes and arguments only. A function that is not listed keeps the axes when the
shape stays, or when leading axes are broadcast in front; otherwise they are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from kvtrace.record.flow.marks.axes import Axes, Letters, permuted, swapped

Arguments = tuple[Sequence[Any], Mapping[str, Any]]
View = Callable[[Axes, Letters, Tensor, Tensor, Arguments], Axes | None]
"""(axes, letters, tensor in, tensor out, arguments after the tensor) → axes."""


def _argument(arguments: Arguments, place: int, name: str, default: Any = None) -> Any:
    given, named = arguments
    return given[place] if len(given) > place else named.get(name, default)


def _reshape(
    axes: Axes, letters: Letters, x: Tensor, out: Tensor, arguments: Arguments
) -> Axes | None:
    del x, arguments
    return letters.reshape(axes, out.shape)


def _transpose(
    axes: Axes, letters: Letters, x: Tensor, out: Tensor, arguments: Arguments
) -> Axes | None:
    del letters, out
    first = _argument(arguments, 0, "dim0", arguments[1].get("axis0"))
    second = _argument(arguments, 1, "dim1", arguments[1].get("axis1"))
    return swapped(axes, first % x.dim(), second % x.dim())


def _last_two(
    axes: Axes, letters: Letters, x: Tensor, out: Tensor, arguments: Arguments
) -> Axes | None:
    del letters, x, out, arguments
    return swapped(axes, -2 % len(axes), -1 % len(axes)) if len(axes) > 1 else axes


def _permute(
    axes: Axes, letters: Letters, x: Tensor, out: Tensor, arguments: Arguments
) -> Axes | None:
    del letters, out
    given, named = arguments
    order = given[0] if given and isinstance(given[0], Sequence) else given or named["dims"]
    return permuted(axes, [place % x.dim() for place in order])


def _movedim(
    axes: Axes, letters: Letters, x: Tensor, out: Tensor, arguments: Arguments
) -> Axes | None:
    del letters, out
    source = _argument(arguments, 0, "source")
    target = _argument(arguments, 1, "destination")
    sources = [source] if isinstance(source, int) else list(source)
    targets = [target] if isinstance(target, int) else list(target)
    sources = [place % x.dim() for place in sources]
    taken = {to % x.dim(): place for place, to in zip(sources, targets, strict=True)}
    rest = iter(place for place in range(x.dim()) if place not in sources)
    return permuted(axes, [taken[n] if n in taken else next(rest) for n in range(x.dim())])


def _unsqueeze(
    axes: Axes, letters: Letters, x: Tensor, out: Tensor, arguments: Arguments
) -> Axes | None:
    del letters, x
    place = _argument(arguments, 0, "dim") % out.dim()
    return (*axes[:place], "", *axes[place:])


def _squeeze(
    axes: Axes, letters: Letters, x: Tensor, out: Tensor, arguments: Arguments
) -> Axes | None:
    del letters
    place = _argument(arguments, 0, "dim")
    if place is None:
        kept = [axis for axis, size in zip(axes, x.shape, strict=True) if size != 1]
    else:
        places = {p % x.dim() for p in ([place] if isinstance(place, int) else place)}
        sized = enumerate(zip(axes, x.shape, strict=True))
        kept = [axis for n, (axis, size) in sized if n not in places or size != 1]
    return tuple(kept) if len(kept) == out.dim() else None


def _narrow(
    axes: Axes, letters: Letters, x: Tensor, out: Tensor, arguments: Arguments
) -> Axes | None:
    place = _argument(arguments, 0, "dim") % x.dim()
    start = _argument(arguments, 1, "start")
    if isinstance(start, Tensor):
        return None
    cut = letters.cut(axes[place], start % x.shape[place], out.shape[place])
    return None if cut is None else (*axes[:place], cut, *axes[place + 1 :])


def _select(
    axes: Axes, letters: Letters, x: Tensor, out: Tensor, arguments: Arguments
) -> Axes | None:
    del letters, out
    place = _argument(arguments, 0, "dim") % x.dim()
    return (*axes[:place], *axes[place + 1 :]) if x.shape[place] == 1 else None


def _getitem(
    axes: Axes, letters: Letters, x: Tensor, out: Tensor, arguments: Arguments
) -> Axes | None:
    """Slices, whole numbers on axes of size 1, None and Ellipsis."""
    index = arguments[0][0]
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(item, Tensor | list) for item in items):
        return axes if out.shape == x.shape else None
    used = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis not in items:
        items.append(Ellipsis)
    at = items.index(Ellipsis)
    items[at : at + 1] = [slice(None)] * (x.dim() - used)
    place, found = 0, []
    for item in items:
        if item is None:
            found.append("")
            continue
        if isinstance(item, slice):
            start, stop, stride = item.indices(x.shape[place])
            cut = letters.cut(axes[place], start, max(0, stop - start)) if stride == 1 else None
            if cut is None:
                return None
            found.append(cut)
        elif x.shape[place] != 1:
            return None
        place += 1
    return tuple(found)


def _expand(
    axes: Axes, letters: Letters, x: Tensor, out: Tensor, arguments: Arguments
) -> Axes | None:
    del arguments
    padded = ("",) * (out.dim() - x.dim()) + axes
    sizes = (1,) * (out.dim() - x.dim()) + tuple(x.shape)
    grown = zip(padded, sizes, out.shape, strict=True)
    return tuple(letters.new(new) if old == 1 and new != 1 else axis for axis, old, new in grown)


def elementwise(axes: Axes, letters: Letters, x: Tensor, out: Tensor) -> Axes | None:
    """Axes after a function that may broadcast; None when the shape says it is no such one."""
    if out.shape == x.shape:
        return axes
    lead = out.dim() - x.dim()
    sizes = (1,) * lead + tuple(x.shape)
    if lead < 0 or any(a not in (1, b) for a, b in zip(sizes, out.shape, strict=True)):
        return None
    return _expand(axes, letters, x, out, ((), {}))


VIEWS: Mapping[str, View] = {
    **dict.fromkeys(
        ("view", "reshape", "flatten", "unflatten", "ravel", "view_as", "reshape_as"), _reshape
    ),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "transpose_"), _transpose),
    **dict.fromkeys(("t", "adjoint"), _last_two),
    **dict.fromkeys(("permute",), _permute),
    **dict.fromkeys(("movedim", "moveaxis"), _movedim),
    **dict.fromkeys(("unsqueeze", "unsqueeze_"), _unsqueeze),
    **dict.fromkeys(("squeeze", "squeeze_"), _squeeze),
    "narrow": _narrow,
    "select": _select,
    "__getitem__": _getitem,
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
}


def attribute(name: str, axes: Axes, x: Tensor) -> Axes | None:
    """Axes of `tensor.name`; None when it is no view that can be followed."""
    if name == "data":
        return axes
    if name == "T":
        return tuple(reversed(axes))
    if name in ("mT", "mH", "H") and x.dim() > 1:
        return swapped(axes, x.dim() - 2, x.dim() - 1)
    return None
