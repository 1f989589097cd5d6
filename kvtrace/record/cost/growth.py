"""How the cost of a matrix product grows, learned from two forwards.

A product costs so much per new row, per row of logits, per attended row (MLA expands its latents
anew at every step), per pair of both, or per sequence. Prefill and first decode step tell which: in
the one `new` equals `seq`, in the other it is 1; where both fit, the multiplied rows tell. What
fits none of these is summed over its siblings first: which expert gets how many rows is a matter
of the text, but together they get `new × top-k`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct

from kvtrace.record.cost.products import Key


class Per(Enum):
    """What a cost is proportional to, for each sequence of the batch."""

    NEW = "new rows"
    LOGITS = "rows of logits"
    SEQ = "attended rows"
    PAIR = "new × attended rows"
    SEQUENCE = "sequences, each pass"
    START = "sequences, passes that start a sequence"
    LONG = "new rows, where there are several"
    SINGLE = "new rows, where there is one"


class Sizes(NamedTuple):
    """The sizes of one forward. A tuple, because every product has some.

    Attributes:
        sequences: Rows of the batch.
        new: Tokens in, per sequence.
        seq: Rows attended to.
        logits: Rows of logits, of all sequences.
    """

    sequences: int
    new: int
    seq: int
    logits: int = 0

    def amount(self, per: Per) -> int:
        """How much of `per` there is."""
        if per is Per.NEW:
            return self.sequences * self.new
        if per is Per.LOGITS:
            return self.logits
        if per in (Per.LONG, Per.SINGLE):
            fits = (self.new > 1) is (per is Per.LONG)
            return self.sequences * self.new if fits else 0
        if per is Per.SEQ:
            return self.sequences * self.seq
        if per is Per.PAIR:
            return self.sequences * self.new * self.seq
        return self.sequences


class Growth(Struct, frozen=True):
    """The cost of a product as a function of sizes.

    Attributes:
        per: What it is proportional to.
        flops: For each of them.
        sure: Two forwards agreed; otherwise it is extrapolated from one.
    """

    per: Per
    flops: int | Fraction
    sure: bool = True


class Seen(NamedTuple):
    """What a product cost in one forward.

    Attributes:
        flops: 0: it did not run.
        sizes: Of the forward, as this product's module saw them.
        rows: Rows that a weight was multiplied with; 0: not known.
    """

    flops: int
    sizes: Sizes
    rows: int = 0


def ratio(number: int | Fraction, of: int) -> int | Fraction:
    """A fraction, or the int that it is: arithmetic on fractions is slow."""
    found = Fraction(number, of)
    return found.numerator if found.denominator == 1 else found


def growth(seen: Sequence[Seen], *, weight: bool) -> Growth | None:
    """What fits every observation; None if nothing does.

    Args:
        seen: One or two forwards, a prefill first.
        weight: It multiplies a parameter, which rules out growth with pairs.
    """
    ran = [one for one in seen if one.flops]
    if not ran:
        return None
    if len(ran) < len(seen):
        if weight and ran[0] is seen[0]:
            # the encoder's and the cross attention's: once for each sequence
            return Growth(Per.START, ratio(ran[0].flops, ran[0].sizes.sequences))
        return None
    fitting = {
        per: each for per in (OF_A_WEIGHT if weight else OF_ROWS) if (each := _each(ran, per))
    }
    # several may fit: by the very rows that were multiplied, by whole multiples of them, by any
    for whole in (_as_many, _as_often, _anyhow):
        for per, each in fitting.items():
            if all(whole(one.rows, one.sizes.amount(per)) for one in ran):
                return Growth(per, each, sure=len(seen) > 1)
    return None


OF_A_WEIGHT = (Per.NEW, Per.LOGITS, Per.SEQ, Per.SEQUENCE)
OF_ROWS = (Per.NEW, Per.SEQ, Per.PAIR, Per.SEQUENCE)


def _each(ran: Sequence[Seen], per: Per) -> int | Fraction | None:
    """What all of them cost for each of `per`; None: not the same."""
    amounts = [one.sizes.amount(per) for one in ran]
    if not all(amounts):
        return None
    each = {ratio(one.flops, amount) for one, amount in zip(ran, amounts, strict=True)}
    return each.pop() if len(each) == 1 else None


def _as_many(rows: int, amount: int) -> bool:
    return rows == amount


def _as_often(rows: int, amount: int) -> bool:
    return rows > 0 and rows % amount == 0


def _anyhow(rows: int, amount: int) -> bool:
    return True


@lru_cache(maxsize=1 << 14)
def family(key: Key) -> Key:
    """The key with every number of its path left out: siblings in lists of modules share it."""
    return (re.sub(r"(?<![^.])\d+(?![^.])", "*", key[0]), key[1], 0)


def fit(seen: Mapping[Key, Sequence[Seen]]) -> dict[Key, tuple[Growth, ...]]:
    """Growth of every product, as a sum of terms.

    Args:
        seen: Observations by key, the same number for each.

    Returns:
        Terms by key; those of a family that was summed up stand under its first key.
    """
    fitted: dict[Key, tuple[Growth, ...]] = {}
    single: dict[Key, Growth | None] = {}
    alike: dict[tuple[bool, tuple[Seen, ...]], Growth | None] = {}
    for key, one in seen.items():
        same = (bool(key[1]), tuple(one))
        if same not in alike:
            alike[same] = growth(one, weight=bool(key[1]))
        single[key] = alike[same]
    families: dict[Key, list[Key]] = {}
    for key in seen:
        families.setdefault(family(key), []).append(key)
    for members in families.values():
        grown = [single[key] for key in members]
        whole = [one for one in grown if one is not None]
        uneven = len({one.per is Per.START for one in whole}) > 1 and bool(members[0][1])
        if len(whole) == len(members) and not uneven:
            fitted |= {key: (one,) for key, one in zip(members, whole, strict=True)}
            continue
        first = members[0]
        fitted[first] = _together([seen[key] for key in members], weight=bool(first[1]))
    return fitted


def _together(members: Sequence[Sequence[Seen]], *, weight: bool) -> tuple[Growth, ...]:
    """Growth of a sum; unsure where even that fits nothing, and where no rows went in."""
    total = [
        Seen(sum(one.flops for one in same), same[0].sizes, sum(one.rows for one in same))
        for same in zip(*members, strict=True)
    ]
    found = growth(total, weight=weight)
    if found is not None:
        return (found,)
    ran = [one for one in total if one.flops]
    if not ran:
        return (Growth(Per.NEW, 0, sure=False),)
    begun = _begun(total, len(members)) if weight else ()
    if begun:
        return begun
    longest = max(ran, key=lambda one: one.sizes.new)
    if len(ran) < len(total):
        # as many rows took another way where a text went on
        alike = any(not one.flops and one.sizes.new == longest.sizes.new for one in total)
        if alike and ran == total[:1]:
            return (Growth(Per.START, ratio(longest.flops, longest.sizes.sequences), sure=False),)
        per = Per.LONG if longest.sizes.new > 1 else Per.SINGLE
        return (Growth(per, ratio(longest.flops, longest.sizes.amount(per)), sure=False),)
    return _affine(longest, min(ran, key=lambda one: one.sizes.new))


def _begun(total: Sequence[Seen], members: int) -> tuple[Growth, ...]:
    """So much per new row, and more where a text begins: one weight for it and for what it reads.

    Args:
        total: Sums over some weights, a forward that begins a text first.
        members: How many weights.
    """
    first, then = total[0], total[-1]
    rows = then.sizes.amount(Per.NEW) * members
    more = first.rows - first.sizes.amount(Per.NEW) * members
    if (
        len(total) < 2
        or then.rows != rows
        or more <= 0
        or first.rows * then.flops != rows * first.flops
    ):
        return ()
    each = ratio(then.flops, then.sizes.amount(Per.NEW))
    extra = ratio(first.flops * more, first.rows * first.sizes.sequences)
    return (Growth(Per.NEW, each), Growth(Per.START, extra))


def _affine(longer: Seen, shorter: Seen) -> tuple[Growth, ...]:
    """So much per new row and so much per sequence: padded convolutions.

    Where that can't be, one row is computed in another way than several are: recurrent scans.
    """
    rows = longer.sizes.new - shorter.sizes.new
    each = [Fraction(one.flops, one.sizes.sequences) for one in (longer, shorter)]
    slope = (each[0] - each[1]) / rows if rows else Fraction(0)
    base = each[1] - slope * shorter.sizes.new
    if slope <= 0 or base < 0:
        flops = Fraction(longer.flops, longer.sizes.amount(Per.NEW))
        if shorter.sizes.new > 1 or longer.sizes.new == 1:
            return (Growth(Per.NEW, flops, sure=False),)
        single = Fraction(shorter.flops, shorter.sizes.amount(Per.NEW))
        return (Growth(Per.LONG, flops, sure=False), Growth(Per.SINGLE, single, sure=False))
    return (Growth(Per.NEW, slope, sure=False), Growth(Per.SEQUENCE, base, sure=False))
