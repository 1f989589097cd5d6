"""One attention call as the data flow showed it: q, k, v, mask, bias and output in our shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrace.record.flow.arrange import (
    AmbiguousError,
    Evidence,
    Roles,
    Sizes,
    Structure,
    arranged,
    roles,
    structure,
    wide,
)
from kvtrace.record.flow.axes import Axes, Letters
from kvtrace.record.flow.contraction import Contraction
from kvtrace.record.flow.explain import explain, from_weights, seen_in
from kvtrace.record.flow.marks import Mark, Product
from kvtrace.record.flow.prove import FlowCall

Certain = tuple[int | None, int | None]
"""Places of (query among free, batch among shared) axes in a call that left no doubt."""

RANDOM = ("dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")
HARMLESS = (*RANDOM, "to", "float", "half", "bfloat16", "type", "type_as", "clone", "contiguous")


@dataclass(frozen=True, slots=True)
class Read:
    """A call, and what it taught about the code that made it."""

    call: FlowCall
    certain: Certain | None


@dataclass(frozen=True, slots=True)
class _Side:
    """Queries or keys of one product."""

    tensor: Tensor
    axes: Axes


def mixes(mark: Mark, mix: Contraction, weights_left: bool) -> bool:
    """Whether a product of marked weights with something contracts the key axis."""
    weight_letters = mix.left_axes if weights_left else mix.right_axes
    if mark.axes is None or len(mark.axes) != len(weight_letters):
        return False
    named = dict(zip(weight_letters, mark.axes, strict=True))
    contracted = "".join(named.get(x, "") for x in mix.contracted)
    letters = mark.letters
    key = letters.whole(mark.key)
    if letters.size(key) == 1:
        return len(mix.contracted) == 1 and mix.sizes()[mix.contracted] == 1
    return letters.whole(contracted) in (key, letters.whole(letters.before(mark.key)))


def read(
    mark: Mark, mix: Contraction, weights_left: bool, sizes: Sizes, before: Certain | None
) -> Read:
    """Read an attention call off its last product, weights · values.

    Args:
        mark: Of the weights.
        mix: The product.
        weights_left: Which operand holds the weights.
        sizes: What is known from outside.
        before: What an earlier call of the same code taught.

    Raises:
        AmbiguousError: Sizes coincide so that the axes can't be told apart.
        UnexplainedError: The logits are not what q·kᵀ makes.
    """
    letters = mark.letters
    weights, values = (mix.left, mix.right) if weights_left else (mix.right, mix.left)
    weight_letters = mix.left_axes if weights_left else mix.right_axes
    value_letters = mix.right_axes if weights_left else mix.left_axes
    if mark.axes is None:
        raise AmbiguousError("the axes of its weights were lost in a view")
    key = letters.whole(letters.before(mark.key))
    sides = _sides(mark, key)
    (query, keys), *_ = sides
    shape = structure(mark.axes, query.axes, key + mark.key, keys.axes, letters)
    evidence = Evidence(_masked_along(mark), _outside(query, letters), before)
    found = roles(shape, letters, sizes, evidence)
    named = _named(mark, mix, weight_letters, value_letters, key)
    groups = (found.batch, found.heads)
    mixed_key = letters.whole("".join(named[x] for x in mix.contracted)) or key
    features = "".join(named[x] for x in value_letters if x not in weight_letters)
    value_axes = tuple(named[x] for x in value_letters)
    v = arranged(values, _present(values, value_axes), letters, (*groups, mixed_key, features))
    out_axes = tuple(named[x] for x in mix.out_axes)
    out = arranged(mix.out, out_axes, letters, (*groups, found.query, letters.whole(features)))
    q, k = _joined(
        [_rows(side, letters, found, found.query) for side, _ in sides],
        [_rows(side, letters, found, key) for _, side in sides],
        [part.alpha for part in _main(mark, key)],
    )
    if v.shape[2] > k.shape[2]:  # a row of zeros for the sink
        v = v.narrow(2, letters.longer[mark.key][1], k.shape[2])
    q = q.expand(-1, out.shape[1], -1, -1)
    final = arranged(weights, mark.axes, letters, (*groups, found.query, mixed_key))
    call = _explained(mark, found, (q, k, v, out), final)
    return Read(call, _learned(shape, found))


def _present(tensor: Tensor, axes: Axes) -> Axes:
    """Axes of an operand; one that was broadcast has no letter."""
    return tuple(axis if size != 1 else "" for axis, size in zip(axes, tensor.shape, strict=True))


def _named(mark: Mark, mix: Contraction, weights: str, values: str, key: str) -> dict[str, str]:
    """The mix's own letters as those of the mark; features get new ones."""
    letters = mark.letters
    named = dict(zip(weights, mark.axes or (), strict=True))
    for letter, size in mix.sizes().items():
        if letter not in named:
            named[letter] = letters.new(size)
        elif not named[letter] and size != 1:
            named[letter] = key if letter in mix.contracted else letters.new(size)
    del values
    return named


def _main(mark: Mark, key: str) -> list[Product]:
    """Products that are a query row times a key row; others act as a bias."""
    letters = mark.letters
    good = [part for part in mark.products if _as_sides(part, letters, key) is not None]
    if not good:
        raise AmbiguousError("none of its products multiplies queries with keys")
    return good


def _sides(mark: Mark, key: str) -> list[tuple[_Side, _Side]]:
    sides = [_as_sides(part, mark.letters, key) for part in _main(mark, key)]
    return [side for side in sides if side is not None]


def _as_sides(part: Product, letters: Letters, key: str) -> tuple[_Side, _Side] | None:
    """(queries, keys): the keys are the side that has the softmax axis, and no row axis."""
    left = _Side(part.left, part.left_axes)
    right = _Side(part.right, part.right_axes)
    in_left, in_right = letters.whole("".join(left.axes)), letters.whole("".join(right.axes))
    if letters.size(key) == 1:
        return left, right
    if key in in_right and key not in in_left:
        return left, right
    if key in in_left and key not in in_right:
        return right, left
    return None


def _rows(side: _Side, letters: Letters, found: Roles, rows: str) -> Tensor:
    """Queries or keys as [sequences, heads, rows, features]."""
    taken = found.batch + found.heads + rows
    features = "".join(x for x in wide(side.axes, letters) if x not in taken)
    return arranged(side.tensor, side.axes, letters, (found.batch, found.heads, rows, features))


def _joined(
    queries: list[Tensor], keys: list[Tensor], alphas: list[float]
) -> tuple[Tensor, Tensor]:
    """Several products summed are one product over the features side by side."""
    if len(queries) == 1:
        return queries[0], keys[0]
    heads, kv_heads = max(q.shape[1] for q in queries), max(k.shape[1] for k in keys)
    new, seq = max(q.shape[2] for q in queries), max(k.shape[2] for k in keys)
    scaled = [
        q.expand(-1, heads, new, -1)
        if alpha == alphas[0]
        else q.expand(-1, heads, new, -1) * (alpha / alphas[0])
        for q, alpha in zip(queries, alphas, strict=True)
    ]
    return torch.cat(scaled, -1), torch.cat([k.expand(-1, kv_heads, seq, -1) for k in keys], -1)


def _masked_along(mark: Mark):  # type: ignore[no-untyped-def]
    """Evidence: letters along which the mask changes."""

    def varied(candidates: list[str]) -> list[str]:
        if mark.logits is None:
            return []
        letters = mark.letters
        every = "".join(wide(mark.logits_axes, letters))
        found = []
        for letter in candidates:
            others = "".join(x for x in every if x != letter)
            table = seen_in(arranged(mark.logits, mark.logits_axes, letters, (letter, others)))
            if bool((table != table[:1]).any()):
                found.append(letter)
        return found

    return varied


def _outside(side: _Side, letters: Letters):  # type: ignore[no-untyped-def]
    """Evidence: letters whose stride in the queries is larger than that of the rows."""

    def outside(candidates: list[str], query: str) -> list[str]:
        strides = {
            letters.whole(axis): stride
            for axis, stride in zip(side.axes, side.tensor.stride(), strict=True)
            if axis
        }
        if query not in strides:
            return []
        return [x for x in candidates if strides.get(x, 0) > strides[query]]

    return outside


def _learned(shape: Structure, found: Roles) -> Certain | None:
    """What a call without doubt teaches about later ones of the same code."""
    if found.assumed:
        return None
    query = shape.free.index(found.query) if found.query in shape.free else None
    batch = shape.shared.index(found.batch) if found.batch in shape.shared else None
    return query, batch


def _explained(
    mark: Mark, found: Roles, rows: tuple[Tensor, Tensor, Tensor, Tensor], final: Tensor
) -> FlowCall:
    """Add scale, softcap, mask, bias and sinks: what turns q·kᵀ into the logits."""
    q, k, v, out = rows
    sinks, shift = None, None
    if mark.logits is None:
        how = from_weights(q, k, final)
    else:
        groups = (found.batch, found.heads, found.query, mark.letters.whole(mark.key))
        logits = arranged(mark.logits, mark.logits_axes, mark.letters, groups)
        logits, sinks = _without_sink(mark, logits, k.shape[2])
        how = explain(q, k, logits, mark.scale, mark.softcap, added=mark.added)
        shift = how.shift
    visible = how.visible
    if any(name not in HARMLESS for name in mark.changed):
        shown = final > 0
        visible = shown if visible is None else visible & shown
    if how.head_scale is not None:
        q = q * how.head_scale[None, :, None, None].to(q.dtype)
    random = None
    if any(name in RANDOM for name in mark.changed) and mark.weights is not None:
        groups = (found.batch, found.heads, found.query, mark.letters.whole(mark.key))
        random = arranged(mark.weights, mark.logits_axes, mark.letters, groups)
        random, _ = _without_sink(mark, random, k.shape[2])
    return FlowCall(
        q,
        k,
        v,
        out,
        how.scale,
        how.softcap,
        visible,
        how.bias,
        None if sinks is None else _same_for_all(sinks, shift),
        level=3,
        place=mark.place,
        weights=random,
        assumed=found.assumed,
    )


def _without_sink(mark: Mark, logits: Tensor, seq: int) -> tuple[Tensor, Tensor | None]:
    """Logits of the keys, and of the one extra column if there is one."""
    extra = logits.shape[-1] - seq
    if not extra:
        return logits, None
    if extra != 1:
        raise AmbiguousError(f"the softmax has {extra} columns more than there are keys")
    before = mark.letters.longer[mark.key][1]
    return logits.narrow(-1, before, seq), logits[..., :1] if before else logits[..., -1:]


def _same_for_all(sinks: Tensor, shift: Tensor | None) -> Tensor:
    """The sink of each head, [heads]."""
    if shift is not None:
        sinks = sinks - shift
    first = sinks[:1, :, :1]
    if float((sinks - first).abs().amax()) > 1e-4 * (1.0 + float(first.abs().amax())):
        raise AmbiguousError("the extra column of the softmax is not the same for all queries")
    return first[0, :, 0, 0]
