"""Tensors of any layout as [sequences, heads, rows, features].

The letters say which axis belongs together; the structure of q·kᵀ says which are shared, which
only the queries have and which only the keys have. Sizes decide the rest, then evidence: the mask
changes along queries and never along heads, and a projection's output lies in memory as
[sequences, tokens, heads, features]. What stays open is `AmbiguousError`: a guess would be a lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from msgspec import Struct, field
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.flow.marks.axes import Axes, Letters


class AmbiguousError(Exception):
    """Two axes could play the same role."""


class NotOverTokensError(Exception):
    """Every token attends to a set of its own: layers, experts, memory; no KV attention."""


class Sizes(Struct, frozen=True):
    """What is known from outside about one attention call.

    Attributes:
        batch: Sequences in this forward; None when unknown.
        tokens: Numbers of tokens per sequence that went in, innermost module first.
        around: The same of the modules between the innermost and the outermost one.
    """

    batch: int | None = None
    tokens: tuple[int, ...] = ()
    around: tuple[int, ...] = ()


class Roles(Struct, frozen=True):
    """Which letters are what.

    Attributes:
        batch, heads: Letters of sequences and of query heads, kv heads first.
        query, key: Letters of rows and of attended rows.
        assumed: What was taken by convention, in a few words; empty when all is certain.
    """

    batch: str
    heads: str
    query: str
    key: str
    assumed: str = ""


class Structure(Struct, frozen=True):
    """The letters of one attention by the operand that has them.

    Attributes:
        shared: Queries and keys both have them: sequences and kv heads.
        free: Only queries have them: rows, and groups of heads that share keys.
        key: The softmax axis.
        spread: Neither has them: an added term brought them in (heads of a bias).
        outer: The outermost one of all, where queries have it; empty: none, or they lack it.
        first: Letters of the first axis of all.
    """

    shared: list[str]
    free: list[str]
    key: str
    spread: list[str] = field(default_factory=list)
    outer: str = ""
    first: str = ""


class Evidence(Struct, frozen=True):
    """What can be looked at when sizes do not decide.

    Attributes:
        masked_along: Of several letters, those along which the mask changes.
        outside: Of several shared letters, those that lie outside of the queries in memory.
        before: Places of (query among free, batch among shared) in an earlier, certain call of
            the same code; None without one.
        proven: The module is known to attend to tokens.
    """

    masked_along: Callable[[list[str]], list[str]]
    outside: Callable[[list[str], str], list[str]]
    before: tuple[int | None, int | None] | None = None
    proven: bool = False


def structure(weights: Axes, query: Axes, key: str, key_axes: Axes, letters: Letters) -> Structure:
    """Sort the letters of attention weights by who has them."""
    in_query = set(wide(query, letters))
    in_key = set(wide(key_axes, letters))
    rest = [x for x in wide(weights, letters) if x not in key]
    shared = [x for x in rest if x in in_query and x in in_key]
    free = [x for x in rest if x in in_query and x not in in_key]
    only_key = [x for x in rest if x in in_key and x not in in_query]
    if only_key:
        raise AmbiguousError("keys have an axis that queries lack")
    spread = [x for x in rest if x not in in_query and x not in in_key]
    outer = rest[0] if rest and rest[0] in in_query else ""
    return Structure(shared, free, key, spread, outer, "".join(wide(weights[:1], letters)))


def wide(axes: Axes, letters: Letters) -> list[str]:
    """All letters with more than one entry, in order."""
    every = letters.whole("".join(axes))
    return [letter for letter in every if letters.sizes[letter] > 1]


def roles(found: Structure, letters: Letters, sizes: Sizes, evidence: Evidence) -> Roles:
    """Tell sequences, heads and queries apart.

    Raises:
        AmbiguousError: Two axes could be the query axis or the batch axis.
    """
    own = [x for x in found.shared if letters.sizes[x] in sizes.tokens]
    # code that attended to tokens before has heads, which are as many as tokens came in now
    known = evidence.proven and evidence.before is not None
    rows = any(letters.sizes[x] % n == 0 for x in found.free for n in sizes.tokens if n > 1)
    if own and not rows and sizes.tokens[-1] > 1 and not known:
        raise NotOverTokensError("each token attends to a set of its own")
    ways = found, letters, sizes, evidence
    query = _tokens_first(*ways) or _query(*ways)
    batch, assumed = _batch(found, letters, sizes, evidence, query)
    rest = [letters.whole(x) for x in (*found.shared, *found.free, *found.spread)]
    heads = "".join(x for x in "".join(rest) if x not in batch + query)
    return Roles(batch, heads, query, found.key, assumed)


def _query(found: Structure, letters: Letters, sizes: Sizes, evidence: Evidence) -> str:
    """The letter of the query rows; empty when there is one row."""
    free, sizes = found.free, _of_texts(found, letters, sizes)
    if not free or (sizes.tokens and sizes.tokens[0] == 1 and max(sizes.tokens) == 1):
        return _beside_one(free, evidence)
    exact = [x for x in free if letters.sizes[x] in sizes.tokens]
    if len(exact) == 1:
        return exact[0]
    if len(free) == 1:
        alone = 1 in (*sizes.tokens, *sizes.around)
        if alone and not any(n > 1 and not letters.sizes[free[0]] % n for n in sizes.tokens):
            return _beside_one(free, evidence)
        return _unmerged(free[0], letters, sizes, evidence)
    varied = evidence.masked_along(exact or free)
    if len(varied) == 1:
        return varied[0]
    if evidence.before is not None and evidence.before[0] is not None:
        return free[evidence.before[0]]
    names = " and ".join(str(letters.sizes[x]) for x in exact or free)
    raise AmbiguousError(f"axes of {names} entries could both hold the queries")


def _beside_one(free: list[str], evidence: Evidence) -> str:
    """The query letter of a step of one token: none, but where a model puts rows of its own to it.

    Else they are heads of the one row, which share one set of keys.
    """
    rows = evidence.masked_along(free) if len(free) == 1 else []
    return rows[0] if rows else ""


def _of_texts(found: Structure, letters: Letters, sizes: Sizes) -> Sizes:
    """The sizes without those of modules that have tokens first, where each text has one token.

    What looks like the tokens of such a module is its sequences.
    """
    batch = sizes.batch
    apart = any(letters.sizes[x] == batch for x in found.shared)
    if not batch or batch == 1 or not sizes.tokens or sizes.tokens[-1] != 1 or not apart:
        return sizes
    return replace(sizes, tokens=tuple(n for n in sizes.tokens if n != batch))


def _tokens_first(found: Structure, letters: Letters, sizes: Sizes, evidence: Evidence) -> str:
    """The rows of one text that was given tokens first: it looks like as many texts of a token.

    No axis of keys holds so many texts, and the mask tells the rows of that axis apart.
    """
    batch = sizes.batch or 1
    apart = any(letters.sizes[x] % batch == 0 for x in found.shared)
    if batch == 1 or apart or max(sizes.tokens, default=0) != 1:
        return ""
    fits = [x for x in found.free if letters.sizes[x] == batch]
    return fits[0] if len(fits) == 1 and evidence.masked_along(fits) == fits else ""


def _unmerged(letter: str, letters: Letters, sizes: Sizes, evidence: Evidence) -> str:
    """The query part of an axis that may hold groups of heads and queries merged."""
    size = letters.sizes[letter]
    fits = [n for n in sizes.tokens if n > 1 and size % n == 0]
    if not fits or size == fits[0]:
        return letter
    inside = letters.split(letter, fits[0])
    within = evidence.masked_along(inside)
    if within == inside[1:]:
        return inside[1]
    del letters.parts[letter]
    outside = letters.split(letter, size // fits[0])
    without = evidence.masked_along(outside)
    if without == outside[:1]:
        return outside[0]
    if within == inside and without == outside:
        # no head sees other rows than the next: these are all rows, some of the model's own
        del letters.parts[letter]
        return letter
    raise AmbiguousError(f"an axis of {size} holds {fits[0]} queries and heads in unknown order")


def _batch(
    found: Structure, letters: Letters, sizes: Sizes, evidence: Evidence, query: str
) -> tuple[str, str]:
    """The letter of the sequences, empty for one; and what was assumed."""
    batch, shared, outer = sizes.batch, found.shared, found.outer
    alone = outer in found.free and outer != query and letters.sizes[outer] == batch
    if alone and all(letters.sizes[x] != batch for x in shared):
        return outer, ""  # sequences that share one set of keys, as beams do what an encoder said
    if batch == 1 or not shared:
        return "", _copies(found)
    if batch is None:
        # nobody said: of two shared axes the outer one holds the sequences everywhere
        return (shared[0], "") if len(shared) > 1 else ("", "")
    exact = [x for x in shared if letters.sizes[x] == batch]
    if len(exact) > 1:
        return _outermost(exact, found, sizes, evidence, query)
    merged = [x for x in shared if letters.sizes[x] % batch == 0]
    if exact or len(merged) != 1:
        return "".join(exact), ""
    outer = letters.split(merged[0], letters.sizes[merged[0]] // batch)[0]
    return outer, f"an axis of {letters.sizes[merged[0]]} is sequences × heads, in this order"


def _copies(found: Structure) -> str:
    """What is to be said of one text, an axis of which may hold copies or pieces of it."""
    if len(found.shared) < 2 or found.first not in found.shared:
        return ""
    return (
        "heads lie along several axes, for one text came in; where one of them holds copies of "
        "it, as classifier-free guidance makes them, or pieces, as windows and patches are, those "
        "count as heads as well"
    )


def _outermost(
    exact: list[str], found: Structure, sizes: Sizes, evidence: Evidence, query: str
) -> tuple[str, str]:
    """Of several axes of the right size the one that holds the sequences."""
    outside = evidence.outside(exact, query)
    if len(outside) == 1:
        return outside[0], ""
    if evidence.before is not None and evidence.before[1] is not None:
        return found.shared[evidence.before[1]], ""
    return exact[0], f"of two axes of {sizes.batch} the outer one holds the sequences"


class Layout(Struct, frozen=True):
    """How a tensor becomes one axis a group of letters: reshape, permute, reshape.

    Attributes:
        split, order, merged: Arguments of the three; -1 where the number of keys goes.
        identity: The tensor has that shape already.
    """

    split: tuple[int, ...]
    order: tuple[int, ...]
    merged: tuple[int, ...]
    identity: bool

    def apply(self, tensor: Tensor) -> Tensor:
        """The tensor, arranged."""
        if self.identity:
            return tensor
        return tensor.reshape(self.split).permute(self.order).reshape(self.merged)


def layout(
    axes: Axes, shape: Sequence[int], letters: Letters, groups: tuple[str, ...], growing: str = ""
) -> Layout:
    """The layout of a tensor as one axis a group of letters; a missing letter counts once.

    Args:
        axes: Letters of each axis.
        shape: Of the tensor.
        letters: Their sizes.
        groups: Letters of sequences, heads, rows, features.
        growing: A letter whose size changes from step to step; the layout holds for any.

    Raises:
        AmbiguousError: An axis belongs to none of the groups.
    """
    sizes: dict[str, int] = {}
    for axis, size in zip(axes, shape, strict=True):
        if size == 1:
            continue
        parts = [letter for letter in letters.whole(axis) if letters.sizes[letter] > 1]
        if letters.size("".join(parts)) != size:
            raise AmbiguousError(f"an axis of {size} entries has no known place")
        sizes |= {letter: letters.sizes[letter] for letter in parts}
    present = [[letter for letter in group if letter in sizes] for group in groups]
    names = list(sizes)
    if sorted(names) != sorted(letter for group in present for letter in group):
        raise AmbiguousError("an axis belongs to no sequence, head, row or feature")
    order = tuple(names.index(letter) for group in present for letter in group)
    counts = tuple(prod(sizes[letter] for letter in group) for group in present)
    merged = tuple(
        -1 if growing and growing in g else n for g, n in zip(present, counts, strict=True)
    )
    split = tuple(-1 if letter == growing else sizes[letter] for letter in names)
    identity = order == tuple(range(len(order))) and counts == tuple(shape)
    return Layout(split, order, merged, identity)


def arranged(tensor: Tensor, axes: Axes, letters: Letters, groups: tuple[str, ...]) -> Tensor:
    """A tensor as one axis a group of letters."""
    return layout(axes, tensor.shape, letters, groups).apply(tensor)
