"""Bytes of parameters that a step must read, each once.

Of an embedding only the rows looked up are read, of experts only those that can be active: with k
of E experts per token, n tokens read at most min(E, n·k) of them. That is exact for one token and
an upper bound for several, which may choose the same expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from msgspec import Struct

from kvtrace.record.cost.growth import Growth, Per, family, ratio
from kvtrace.record.cost.plan import Plan
from kvtrace.record.cost.products import Key


class WeightReads(Struct, frozen=True):
    """Parameter bytes as a function of the tokens of a step.

    Attributes:
        always: Read by every step.
        start: Read by steps that start a sequence (an encoder's).
        shares: (bytes, share of them that one token needs) of experts.
        rows: (row bytes, rows) of each embedding that is no output matrix.
    """

    always: int = 0
    start: int = 0
    shares: tuple[tuple[int, int | Fraction], ...] = ()
    rows: tuple[tuple[int, int], ...] = ()

    def read(self, tokens: int, *, starts: bool) -> int:
        """Bytes read by a step.

        Args:
            tokens: In all sequences together.
            starts: The step starts a sequence.
        """
        total = self.always + (self.start if starts else 0)
        if self.shares:
            total += sum(int(size * min(1, part * tokens)) for size, part in self.shares)
        return total + sum([size * min(tokens, count) for size, count in self.rows])


def weight_reads(
    plan: Plan, growth: Mapping[Key, Sequence[Growth]], head_paths: frozenset[str]
) -> WeightReads:
    """Sort the parameters of a model by who reads them when.

    Args:
        plan: The model's modules.
        growth: What was learned of its products; a plain linear layer missing there never ran.
        head_paths: Paths of the output embedding.
    """
    used = _used(plan, growth)
    heads = {at for path, _, _, at in plan.parameters if path in head_paths}
    always = start = 0
    shares: list[tuple[int, int | Fraction]] = []
    rows: list[tuple[int, int]] = []
    for path, name, parameter, at in plan.parameters:
        per, share = used.get(path, (Per.NEW, 1))
        if parameter.ndim == 3 and (path, name, 0) in growth:
            share = _share(growth[path, name, 0], parameter.numel())
        if at in heads:
            always += parameter.nbytes
        elif path in plan.embeddings:
            count = max(len(parameter), 1)
            rows.append((parameter.nbytes // count, count))
        elif per is Per.START:
            start += parameter.nbytes
        elif share >= 1:
            always += parameter.nbytes
        elif share:
            shares.append((parameter.nbytes, share))
    return WeightReads(always, start, tuple(shares), tuple(rows))


def _share(terms: Sequence[Growth], elements: int) -> int | Fraction:
    """Share of a matrix that one token multiplies."""
    flops = sum([one.flops for one in terms if one.per in (Per.NEW, Per.LOGITS)])
    return min(1, ratio(flops, 2 * elements))


def _used(
    plan: Plan, growth: Mapping[Key, Sequence[Growth]]
) -> dict[str, tuple[Per, int | Fraction]]:
    """How each plain linear layer is used, and by which share of the tokens; 0: never ran."""
    flops: dict[Key, int | Fraction] = {}
    per: dict[Key, Per] = {}
    for key, terms in growth.items():
        if key[1]:
            kind = family(key)
            per[kind] = terms[0].per
            flops[kind] = flops.get(kind, 0) + sum([one.flops for one in terms])
    kinds = {path: family((path, "weight", 0)) for path, *_ in plan.linears}
    whole: dict[Key, int] = {}
    for path, _, entering, leaving in plan.linears:
        whole[kinds[path]] = whole.get(kinds[path], 0) + 2 * entering * leaving
    shares: dict[Key, tuple[Per, int | Fraction]] = {}
    for kind, size in whole.items():
        grows = per.get(kind, Per.NEW)
        share = ratio(flops.get(kind, 0), size) if grows is Per.NEW else 1
        shares[kind] = (grows, share)
    return {path: shares[kind] for path, kind in kinds.items()}
