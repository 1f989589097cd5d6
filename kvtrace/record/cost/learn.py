"""From watched forwards to a formula for every part of a model but its attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from msgspec import Struct
from torch import nn

from kvtrace.record.cost import roles
from kvtrace.record.cost.growth import Growth, Per, Seen, Sizes, family, fit, growth, ratio
from kvtrace.record.cost.measured import Measured
from kvtrace.record.cost.plan import Plan
from kvtrace.record.cost.products import Key, Product
from kvtrace.record.cost.weights import WeightReads, weight_reads
from kvtrace.record.processes.local import here

WATCHED = 2
"""Forwards that are watched: the first, and the first that continues one."""


class Following(Struct, frozen=True):
    """A cost that follows the rows its attention module attends to.

    Attributes:
        role: Part of the model.
        module: The attention module it sits in; None: it follows all tokens so far.
        growth: Its size.
    """

    role: str
    module: str | None
    growth: Growth


class _Observed(Struct, frozen=True):
    """A watched forward without its tensors.

    Attributes:
        sizes: Of the forward; `seq` counts all tokens so far.
        attended: The same for each attention module; `seq` counts the rows that it attends to.
        flops: By product.
        rows: Rows multiplied with a weight, by product.
    """

    sizes: Sizes
    attended: Mapping[str, Sizes]
    flops: Mapping[Key, int]
    rows: Mapping[Key, int]


class Learner:
    """What was learned so far.

    Attributes:
        growth: Terms of every product but attention and head.
        flat: Per what → role → FLOPs for each: the sum of most of them.
        following: The rest: what follows attended rows.
        head_row: FLOPs of one row of logits.
        weights: Parameter bytes that a step reads.
        head_paths: Where the output embedding's matrix lives.
        fits: How often it was learned.
        varies: Whether two forwards of one size cost differently: by what their tokens are, or
            by how many came before.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.head_paths = _head_paths(plan)
        self.fits, self.varies = 0, False
        self._roles: dict[Key, str] = {}
        self._observed: list[_Observed] = []
        self._chunk: _Observed | None = None
        self._wrong: set[Key] = set()
        # what forwards of a size cost beside their formula, by role: sequences, new rows, starts
        self._beside: dict[tuple[int, int, bool], dict[str, int]] = {}
        self.growth: dict[Key, tuple[Growth, ...]] = {}
        self.flat: dict[Per, dict[str, int | Fraction]] = {}
        self.following: list[Following] = []
        self.head_row: int | Fraction = 0
        self.weights = WeightReads()

    @property
    def begun(self) -> bool:
        """Whether anything is learned."""
        return bool(self._observed)

    @property
    def done(self) -> bool:
        """Whether everything is learned."""
        return len(self._observed) >= WATCHED

    @property
    def simple(self) -> bool:
        """Whether every product but attention is one of a weight with the new rows."""
        every = [one for terms in self.growth.values() for one in terms]
        # two factors that are no weights may be as long in two forwards, and longer in a third
        weights = all(name for _, name, _ in self.growth)
        return weights and all(one.sure and one.per is Per.NEW for one in every)

    @property
    def only_long(self) -> bool:
        """Whether no forward over a single row was among those that it was learned from."""
        return self.done and all(one.sizes.new > 1 for one in self._observed)

    def add(self, measured: Measured, products: Sequence[Product]) -> dict[str, int]:
        """Learn from a watched forward.

        Returns:
            What it cost by role, attention left out.
        """
        kept = roles.without_attention(products, measured.calls)
        roles.assign(kept, measured.calls, self._heads(kept, measured), self._roles)
        flops: dict[Key, int] = {}
        multiplied: dict[Key, int] = {}
        by_role: dict[str, int] = {}
        for product in kept:
            role = self._roles[product.key]
            flops[product.key] = flops.get(product.key, 0) + product.flops
            multiplied[product.key] = multiplied.get(product.key, 0) + product.rows
            by_role[role] = by_role.get(role, 0) + product.flops
        rows = measured.logit_rows
        if by_role.get(roles.HEAD) and rows:
            self.head_row = ratio(by_role[roles.HEAD], rows)
        whole = Sizes(measured.sequences, measured.new, measured.tokens, rows)
        attended = {
            call.module: whole._replace(seq=int(call.keys.shape[2])) for call in measured.calls
        }
        observed = _Observed(whole, attended, flops, multiplied)
        if self.only_long and measured.new == 1:
            # one row is often computed in another way than several: it tells more than a chunk,
            # which alone may tell rows of logits from new rows
            self._chunk, self._observed[-1] = self._observed[-1], observed
            self._fit()
        elif self.done:
            self._check(observed, starts=measured.starts)
        elif not self._observed or self._tells_more(measured):
            self._observed.append(observed)
            self._fit()
        return by_role

    def correct(
        self, measured: Measured, exact: Mapping[str, int], told: Mapping[str, int]
    ) -> None:
        """Keep what a watched forward cost beside its formula: the next of its size will, too.

        Args:
            measured: Its sizes.
            exact: What it cost by role, attention left out.
            told: The same by the formula.
        """
        every = (exact.keys() | told.keys()) - {roles.HEAD}
        beside = {role: exact.get(role, 0) - told.get(role, 0) for role in every}
        found = {role: flops for role, flops in beside.items() if flops}
        self.varies = self.varies or self._beside.get(_size(measured), found) != found
        self._beside[_size(measured)] = found

    def corrected(self, measured: Measured, told: dict[str, int]) -> dict[str, int]:
        """What a forward costs by its formula, and beside it as another of its size did."""
        for role, flops in self._beside.get(_size(measured), {}).items():
            told[role] = told.get(role, 0) + flops
        return told

    def _check(self, observed: _Observed, *, starts: bool) -> None:
        """Hold what was learned against one more forward; what it got wrong is only estimated."""
        modules = self._modules()
        found: dict[Key, list[int | Fraction]] = {}
        for key, flops in observed.flops.items():
            if self._roles[key] != roles.HEAD:
                found.setdefault(family(key), [0, 0])[0] += flops
        for key, terms in self.growth.items():
            sizes = _seen(observed, key, roles.attention_owner(key[0], modules)).sizes
            pair = found.setdefault(family(key), [0, 0])
            for one in terms:
                if one.per is not Per.START or starts:
                    pair[1] += one.flops * sizes.amount(one.per)
        self._wrong |= {key for key, (seen, told) in found.items() if seen != told}

    def _tells_more(self, measured: Measured) -> bool:
        """Whether new and all rows stand in another proportion than in the first forward."""
        first = self._observed[0].sizes
        return measured.tokens * first.new != first.seq * measured.new

    def _fit(self) -> None:
        self.fits += 1
        self._beside = {}
        modules = self._modules()
        seen: dict[Key, list[Seen]] = {}
        for key in dict.fromkeys(key for one in self._observed for key in one.flops):
            module = roles.attention_owner(key[0], modules)
            if self._roles[key] != roles.HEAD:
                seen[key] = [_seen(one, key, module) for one in self._observed]
        self.growth = fit(seen)
        if self._chunk is not None:
            self._compare_with(self._chunk, seen)
        self.weights = weight_reads(self._plan, self.growth, self.head_paths)
        self.flat, self.following = {}, []
        for key, terms in self.growth.items():
            for one in terms:
                self._add(self._roles[key], roles.attention_owner(key[0], modules), one)

    def _compare_with(self, chunk: _Observed, seen: Mapping[Key, Sequence[Seen]]) -> None:
        """Where two forwards fit several ways to grow, a third may rule out the one taken."""
        modules = self._modules()
        for key, terms in self.growth.items():
            weight = bool(key[1])
            if terms == (growth(seen[key], weight=weight),):  # it stands for no siblings
                more = _seen(chunk, key, roles.attention_owner(key[0], modules))
                better = growth([*seen[key], more], weight=weight)
                if better is not None:
                    self.growth[key] = (better,)

    def _add(self, role: str, module: str | None, one: Growth) -> None:
        if one.per in (Per.SEQ, Per.PAIR):
            self.following.append(Following(role, module, one))
            return
        of = self.flat.setdefault(one.per, {})
        of[role] = ratio(of.get(role, 0) + one.flops, 1)

    def _modules(self) -> frozenset[str]:
        return frozenset(module for one in self._observed for module in one.attended)

    def _heads(self, products: Sequence[Product], measured: Measured) -> frozenset[str]:
        """Where the head's matrix lives: as the model says, or what made the logits' shape."""
        if self.head_paths or not measured.logits:
            return self.head_paths
        vocab, rows = measured.logits[-1], measured.logit_rows
        for product in reversed(products):
            if product.rows == rows and product.flops == 2 * rows * product.in_features * vocab:
                self.head_paths = frozenset((product.key[0],))
                break
        return self.head_paths

    # -- what is left out ------------------------------------------------------------------

    def gaps(self) -> tuple[str, ...]:
        """Sentences: what the FLOPs do not count, or only estimate."""
        unsure = [
            key[0] or "the model"
            for key, terms in self.growth.items()
            if not all(one.sure for one in terms) or family(key) in self._wrong
        ]
        learned = {family(key) for key in self.growth}
        unsure += [key[0] or "the model" for key in self._wrong - learned]
        if not (unsure and self.done):
            return ()
        return (f"FLOPs of {_named(unsure)} are extrapolated from single steps.",)


def _named(paths: Iterable[str]) -> str:
    """The first few of them, and how many there are."""
    every = sorted(set(paths))
    shown = ", ".join(every[:3])
    return shown if len(every) <= 3 else f"{shown} and {len(every) - 3} more modules"


def _size(measured: Measured) -> tuple[int, int, bool]:
    return measured.sequences, measured.new, measured.starts


def _seen(observed: _Observed, key: Key, module: str | None) -> Seen:
    """One product in one forward, with the rows that its module attended to."""
    sizes = observed.sizes if module is None else observed.attended.get(module, observed.sizes)
    return Seen(observed.flops.get(key, 0), sizes, observed.rows.get(key, 0))


def _head_paths(plan: Plan) -> frozenset[str]:
    """Where the output embedding's matrix lives, as the model tells it; tied ones twice."""
    ask = getattr(plan.model, "get_output_embeddings", None)
    module = ask() if callable(ask) else None
    if not isinstance(module, nn.Module):
        return frozenset()
    mine = {id(here(parameter)) for parameter in module.parameters(recurse=False)}
    shared = {path for path, _, parameter, _ in plan.parameters if id(parameter) in mine}
    return frozenset({path for path, other, *_ in plan.linears if other is module} | shared)
