"""How the tensors of one attention are arranged: worked out once, used at every step.

A plan depends on letters, not on numbers; calls of the same code with the same sizes, but for the
number of keys, share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from msgspec import Struct
from torch import Tensor

from kvtrace.record.flow.calls.explain import seen_in
from kvtrace.record.flow.marks.axes import Axes, Letters
from kvtrace.record.flow.marks.mark import Mark, Product
from kvtrace.record.flow.plans.arrange import (
    AmbiguousError,
    Evidence,
    Layout,
    NotOverTokensError,
    Roles,
    Sizes,
    Structure,
    arranged,
    layout,
    roles,
    structure,
    wide,
)
from kvtrace.record.flow.plans.mix import Mix

Certain = tuple[int | None, int | None]
"""Places of (query among free, batch among shared) axes in a call that left no doubt."""

Part = tuple[int, bool, Layout, Layout]
"""A product's place among the mark's, whether its left operand holds the queries, and layouts."""


@dataclass(slots=True)
class Plan:
    """Layouts of everything that takes part.

    Attributes:
        parts: Of each product of queries with keys.
        values, output, logits, weights: Layouts.
        certain: What the call teaches about later ones.
        assumed: What was taken by convention.
        proven: Calls with this plan that have proved themselves.
        plain: They had no bias, no shift, no factor per head.
        group: Query heads that shared repeated keys.
    """

    parts: tuple[Part, ...]
    values: Layout
    output: Layout
    logits: Layout | None
    weights: Layout
    certain: Certain | None
    assumed: str
    proven: int = 0
    plain: bool = False
    group: int = 1

    @property
    def afresh(self) -> Plan:
        """The same for another module that runs this code, where nothing is proved yet."""
        return replace(self, proven=0, plain=False, group=1)


def signature(mix: Mix) -> tuple[object, ...]:
    """What a plan depends on: the letters, and all sizes but the number of keys."""
    mark, product = mix.mark, mix.product
    letters = mark.letters
    growing = growing_letters(mark)
    return (
        mix.place,
        mix.weights_left,
        mark.axes,
        mark.logits_axes,
        mark.key,
        product.left_axes,
        product.right_axes,
        product.out_axes,
        tuple((part.left_axes, part.right_axes, part.left.dim()) for part in mark.products),
        tuple(letters.parts.items()),
        tuple((x, n) for x, n in letters.sizes.items() if x not in growing or n == 1),
        tuple(n for n in mix.values[0].shape if n == 1),
        mix.values[0].shape[-1],
    )


def growing_letters(mark: Mark) -> str:
    """The letters whose size grows with the cache: of the keys, and with a sink beside them."""
    key = mark.letters.before(mark.key)
    return key + mark.key if len(key) == 1 and key not in mark.letters.parts else ""


def make(mix: Mix, sizes: Sizes, before: Certain | None, proven: bool = False) -> Plan:
    """Work a plan out.

    Args:
        mix: The last product, weights · values.
        sizes: What is known from outside.
        before: What an earlier call of the same code taught.
        proven: The module is known to attend to tokens.

    Raises:
        AmbiguousError: Sizes coincide so that the axes can't be told apart.
    """
    mark, product = mix.mark, mix.product
    letters = mark.letters
    assert mark.axes is not None
    key = letters.whole(letters.before(mark.key))
    sides = _sides(mark, key)
    first, left_first = mark.products[sides[0][0]], sides[0][1]
    query_axes, key_axes = _oriented(first.left_axes, first.right_axes, left_first)
    queries = first.left if left_first else first.right
    shape = structure(mark.axes, query_axes, key + mark.key, key_axes, letters)
    _over_tokens(shape, query_axes, key_axes, letters, sizes)
    evidence = Evidence(_MaskedAlong(mark), _Outside(queries, query_axes, letters), before, proven)
    found = roles(shape, letters, sizes, evidence)
    named = _named(mix, key)
    mixed_key = letters.whole("".join(named[x] for x in product.contracted)) or key
    growing = growing_letters(mark)
    grown = next((x for x in growing if x in mixed_key), "")
    groups = (found.batch, found.heads)
    features = _features(mix, named)
    values, value_names = mix.values
    value_axes = _present(values.shape, tuple(named[x] for x in value_names))
    out_axes = tuple(named[x] for x in product.out_axes)
    weights, _ = mix.weights
    rows = (*groups, found.query)
    logits = None
    if mark.logits is not None:
        whole = letters.whole(mark.key)
        last = next((x for x in growing[::-1] if x in whole), "")
        logits = layout(mark.logits_axes, mark.logits.shape, letters, (*rows, whole), last)
    parts = [_part(mark, at, left, found, key, growing[:1]) for at, left in sides]
    return Plan(
        tuple(_of_tokens(mark, parts, found.batch, key)),
        layout(value_axes, values.shape, letters, (*groups, mixed_key, features), grown),
        layout(out_axes, product.out.shape, letters, (*rows, features)),
        logits,
        layout(mark.axes, weights.shape, letters, (*rows, mixed_key), grown),
        _learned(shape, found),
        found.assumed,
    )


def _over_tokens(
    shape: Structure, query_axes: Axes, key_axes: Axes, letters: Letters, sizes: Sizes
) -> None:
    """Refuse features that attend to features: what is summed over then are the tokens."""
    both = set(wide(query_axes, letters)) & set(wide(key_axes, letters)) - set(shape.shared)
    summed = letters.size("".join(both))
    rows = {letters.sizes[x] for x in shape.free}
    over = bool(sizes.tokens) and summed == sizes.tokens[-1] and not rows & set(sizes.tokens)
    # a single row has no tokens to sum over
    over = over and 1 not in (*sizes.tokens, *sizes.around)
    merged = any(row % tokens == 0 for row in rows for tokens in sizes.tokens if tokens > 1)
    if summed == 1 or (over and rows and not merged):
        raise NotOverTokensError("features attend to features")


def _part(mark: Mark, at: int, left: bool, found: Roles, key: str, growing: str) -> Part:
    """Layouts of the queries and keys of one product."""
    letters, part = mark.letters, mark.products[at]
    sides = [(part.left, part.left_axes), (part.right, part.right_axes)]
    (q, q_axes), (k, k_axes) = sides if left else sides[::-1]
    return (
        at,
        left,
        _rows(q, q_axes, letters, found, found.query, ""),
        _rows(k, k_axes, letters, found, key, growing),
    )


def _of_tokens(mark: Mark, parts: Sequence[Part], batch: str, key: str) -> Sequence[Part]:
    """Products with keys of the sequences: not with a table that is the same for all of them.

    Rows of relative positions are one; what comes of it acts as a bias.
    """
    letters, kept = mark.letters, []
    for part in parts:
        product = mark.products[part[0]]
        axes = product.right_axes if part[1] else product.left_axes
        single = {x for x in letters.whole("".join(axes)) if letters.sizes[x] == 1}
        if single - set(key) or set(wide(axes, letters)) & set(batch):
            kept.append(part)
    return kept or parts


def _rows(
    tensor: Tensor, axes: Axes, letters: Letters, found: Roles, rows: str, growing: str
) -> Layout:
    """Queries or keys as [sequences, heads, rows, features]."""
    taken = found.batch + found.heads + rows
    features = "".join(x for x in wide(axes, letters) if x not in taken)
    groups = (found.batch, found.heads, rows, features)
    return layout(axes, tensor.shape, letters, groups, growing)


def _present(shape: tuple[int, ...], axes: Axes) -> Axes:
    """Axes of an operand; one that was broadcast has no letter."""
    return tuple(axis if size != 1 else "" for axis, size in zip(axes, shape, strict=True))


def _named(mix: Mix, key: str) -> dict[str, str]:
    """The mix's own letters as those of the mark; features get new ones."""
    letters, product = mix.mark.letters, mix.product
    named = dict(zip(mix.weights[1], mix.mark.axes or (), strict=True))
    for letter, size in product.sizes().items():
        if letter not in named:
            named[letter] = letters.new(size)
        elif not named[letter] and size != 1:
            named[letter] = key if letter in product.contracted else letters.new(size)
    return named


def _features(mix: Mix, named: dict[str, str]) -> str:
    """Letters that only the values have."""
    letters = mix.mark.letters
    own = dict(zip(mix.weights[1], mix.mark.axes or (), strict=True))
    only = [x for x in mix.values[1] if x not in mix.product.contracted and not own.get(x)]
    whole = letters.whole("".join(named[x] for x in only))
    return "".join(x for x in whole if letters.sizes[x] > 1)


def _oriented(left: Axes, right: Axes, left_first: bool) -> tuple[Axes, Axes]:
    return (left, right) if left_first else (right, left)


def _sides(mark: Mark, key: str) -> list[tuple[int, bool]]:
    """Products that are a query row times a key row, and whether queries are on their left.

    Others (relative positions that change with the query) act as a bias.
    """
    found = []
    for at, part in enumerate(mark.products):
        left = _queries_left(part, mark.letters, key)
        if left is not None:
            found.append((at, left))
    if not found:
        raise AmbiguousError("none of its products multiplies queries with keys")
    return found


def _queries_left(part: Product, letters: Letters, key: str) -> bool | None:
    """The keys are the side that has the softmax axis; None when both have it, or neither.

    A single key whose axis was lost in a view leaves nothing to tell them by; then, as everywhere,
    queries come first.
    """
    in_left = bool(key) and key in letters.whole("".join(part.left_axes))
    in_right = bool(key) and key in letters.whole("".join(part.right_axes))
    if in_left != in_right:
        return in_right
    return True if letters.size(key) == 1 else None


def _learned(shape: Structure, found: Roles) -> Certain | None:
    """What a call without doubt teaches about later ones of the same code."""
    if found.assumed:
        return None
    query = shape.free.index(found.query) if found.query in shape.free else None
    batch = shape.shared.index(found.batch) if found.batch in shape.shared else None
    return query, batch


class _MaskedAlong(Struct, frozen=True):
    """Evidence: letters along which the mask changes."""

    mark: Mark

    def __call__(self, candidates: list[str]) -> list[str]:
        """Those of the candidates."""
        mark, letters = self.mark, self.mark.letters
        if mark.logits is None:
            return []
        every = "".join(wide(mark.logits_axes, letters))
        found = []
        for letter in candidates:
            others = "".join(x for x in every if x != letter)
            table = seen_in(arranged(mark.logits, mark.logits_axes, letters, (letter, others)))
            if bool((table != table[:1]).any()):
                found.append(letter)
        return found


class _Outside(Struct, frozen=True):
    """Evidence: letters whose stride in the queries is larger than that of the rows."""

    queries: Tensor
    axes: Axes
    letters: Letters

    def __call__(self, candidates: list[str], query: str) -> list[str]:
        """Those of the candidates."""
        strides = {
            self.letters.whole(axis): stride
            for axis, stride in zip(self.axes, self.queries.stride(), strict=True)
            if axis
        }
        if query not in strides:
            return []
        return [x for x in candidates if strides.get(x, 0) > strides[query]]
