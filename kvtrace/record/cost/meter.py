"""What each step costs: attention from its recorded shapes, the rest from two watched forwards.

The first forward and the first that continues it are watched; from then on a step costs only
arithmetic. Later ones are watched too, where what was learned may not hold for them: all of them,
once two of the same size were seen to cost differently.
Element-wise work (norms, activations, softmax, recurrent scans) is no matrix product and counts
nothing, as in torch's own counter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from operator import mul

from torch import nn

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.cost import roles
from kvtrace.record.cost.formulas import attention_flops
from kvtrace.record.cost.growth import Per, Sizes
from kvtrace.record.cost.learn import Learner
from kvtrace.record.cost.measured import Measured
from kvtrace.record.cost.plan import plan
from kvtrace.record.cost.products import Product, ProductWatch
from kvtrace.record.cost.rate import Rate
from kvtrace.record.theirs import MODEL
from kvtrace.trace import Flops

ALL_UP_TO = 6
CHECKED = frozenset({18, 34, 66, 130, 258, 514})
"""Forwards that are watched, too, of models that do more than multiply rows by weights."""

KINDS, PATIENCE = 4, 12
"""Sets of layers that are told apart, and forwards that are watched for one that was met late."""

UNSEEN = "FLOPs of the first forward through other layers are those of the layers before it"


class CostMeter:
    """FLOPs of every step of one model.

    `begin` and `end` go around each forward (an encoder's included), `measure` after each step.
    """

    def __init__(self, model: nn.Module) -> None:
        """Look at the model's modules; nothing is hooked yet."""
        self._plan = plan(model, whole=not _calls_its_modules(model))
        self._decoder = self._last = Learner(self._plan)
        self._encoder: Learner | None = None
        self._learners: dict[frozenset[str], Learner] = {}
        self._patience, self._single, self._unseen = 0, False, False
        self._watch: ProductWatch | None = None
        self._products: list[Product] = []
        self._calls_watched = 0
        self._forwards = 0
        self._every_row = False
        self._names: Sequence[str] = ()
        self._groups: dict[tuple[int, int, str], list[int]] = {}
        # layers that work out no more than the logits are made of
        self._few: set[int] = set()
        # shapes of tokens that were met, and how often was learned what they cost
        self._met: set[tuple[Sequence[int], int]] = set()
        self._encoding: tuple[int | Fraction, int | Fraction] = (0, 0)
        self._rate: Rate | None = None

    def begin(self, seen: Callable[[], int], tokens: Sequence[int] = ()) -> None:
        """Before a forward: hook what must be watched, if anything still must.

        Args:
            seen: Number of attention calls so far in this forward.
            tokens: Shape of the tokens it is given; empty: not known.
        """
        self.drop()
        self._forwards += 1
        last = self._last
        shape = (tuple(tokens), last.fits)
        checked = self._forwards <= ALL_UP_TO or self._forwards in CHECKED
        checked = checked or (self._single and last.only_long)
        checked = checked or bool(tokens and shape not in self._met)
        self._met.add(shape)
        waits = self._patience > 0 and not all(one.done for one in self._learners.values())
        self._patience -= waits
        if waits or not self._decoder.done or last.varies or (checked and not last.simple):
            self._watch = ProductWatch(self._plan, seen)

    @property
    def watches(self) -> bool:
        """Whether the forward that runs is watched."""
        return self._watch is not None

    def end(self, calls: int) -> None:
        """After a forward: the hooks are gone, what they saw is kept for `measure`.

        Args:
            calls: Attention calls of this forward.
        """
        if self._watch is not None:
            self._products += [one.after(self._calls_watched) for one in self._watch.products]
            self._calls_watched += calls
            self.drop()

    def drop(self) -> None:
        """After a forward that failed: remove the hooks and forget what they saw."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def forget(self) -> None:
        """Forget what was seen of forwards that are no step."""
        self._products, self._calls_watched = [], 0

    def measure(self, measured: Measured) -> tuple[Flops, Flops]:
        """FLOPs of the step that ended, and of a forward over all tokens so far, uncached."""
        products, self._products, self._calls_watched = self._products, [], 0
        rate = self._rate
        if rate is not None and not products and rate.fits(measured, every_row=self._every_row):
            return rate.at(measured.rows((0,)), measured.tokens)
        self._last = learner = self._learner(measured)
        self._single = measured.new == 1
        exact = learner.add(measured, products) if products else None
        if not (learner.begun or learner is self._decoder):
            self._unseen, learner = True, self._decoder
        if measured.new > 1 and measured.logits:
            self._every_row = measured.logit_rows == measured.sequences * measured.new
        parts = self._parts(learner, measured, uncached=False)
        if exact is not None:
            learner.correct(measured, exact, parts)
            parts = exact
        else:
            parts = learner.corrected(measured, parts)
        scores, mix, again_scores, again_mix = self._attention(measured)
        sequences, total = measured.sequences, measured.tokens
        row = learner.head_row
        head = parts.get(roles.HEAD, int(row * measured.logit_rows))
        cached = _flops(parts, (scores, mix, head), (row, sequences, measured.new))
        if measured.encodes:
            return cached, cached
        head = int(row * sequences * (total if self._every_row else 1))
        self._rate = None if products else self._steady(measured, cached)
        parts = self._parts(learner, measured, uncached=True)
        return cached, _flops(parts, (again_scores, again_mix, head), (row, sequences, total))

    def _steady(self, measured: Measured, cached: Flops) -> Rate | None:
        """What the steps after this one cost if they are like it; None: that is to be seen."""
        learner, groups = self._last, self._groups
        own = measured.alike is not None and measured.past > 0
        even = learner.done and learner.flat.keys() <= {Per.NEW} and not learner.following
        if not (own and even) or any(self._encoding) or any(kind != "self" for *_, kind in groups):
            return None
        scores = sum([key * len(calls) for (key, _, _), calls in groups.items()])
        mix = sum([value * len(calls) for (_, value, _), calls in groups.items()])
        size = (measured.sequences, measured.new, measured.logits)
        each = learner.flat.get(Per.NEW, {})
        rows = (learner.head_row, self._every_row)
        return Rate(measured.modules, *size, cached, each, (scores, mix), *rows)

    def _learner(self, measured: Measured) -> Learner:
        """Forwards through other layers are learned on their own: an encoder's, and drafts'."""
        if measured.encodes:
            self._encoder = self._encoder or Learner(self._plan)
            return self._encoder
        layers = measured.layers
        found = self._learners.get(layers, self._decoder)
        if layers not in self._learners and len(self._learners) < KINDS:
            # the first of them is the decoder
            found = Learner(self._plan) if self._learners else self._decoder
            self._learners[layers], self._patience = found, PATIENCE
        return found

    def weight_bytes(self, measured: Measured) -> tuple[int, int]:
        """Parameter bytes that the step had to read, each once, and that an uncached one reads."""
        tokens = measured.sequences * measured.new
        learner = self._learner(measured)
        weights = (learner if learner.begun else self._decoder).weights
        cached = weights.read(tokens, starts=measured.starts)
        if measured.encodes:
            return cached, cached
        return cached, weights.read(measured.sequences * measured.tokens, starts=True)

    def gaps(self) -> tuple[str, ...]:
        """Sentences: what the FLOPs do not count, or only estimate."""
        every = (self._decoder, *self._learners.values())
        said = dict.fromkeys(gap for one in every for gap in one.gaps())
        return (*said, *((UNSEEN,) if self._unseen else ()))

    # -- arithmetic ------------------------------------------------------------------------

    def _attention(self, measured: Measured) -> tuple[int, int, int, int]:
        """Scores and mix of this forward, scores and mix of an uncached one."""
        total, new, calls = measured.tokens, measured.new, measured.calls
        groups = self._alike(measured)
        if measured.alike is None:
            places = [n for n, call in enumerate(calls) if call.kind == "self"]
            self._few |= {n for n in places if calls[n].queries.size(2) < new}
        scores = mix = again_scores = again_mix = 0
        for (key_features, value_features, kind), members in groups.items():
            seq = measured.rows(members)
            pairs, again = new * seq, total * total * len(members)
            if kind == "cross":
                again = total * seq
            elif kind != "self":
                pairs, again = _pairs(calls, members), 0
            elif few := self._few.intersection(members):
                pairs = _pairs(calls, members)
                again -= 0 if self._every_row else (total - 1) * total * len(few)
            scores += key_features * pairs
            mix += value_features * pairs
            again_scores += key_features * again
            again_mix += value_features * again
        if not measured.encodes and any(kind == "encoder" for _, _, kind in groups):
            self._encoding = _encoding(measured)
        each = 2 * measured.sequences
        once = [int(part * measured.sequences) for part in self._encoding]
        again_scores, again_mix = each * again_scores + once[0], each * again_mix + once[1]
        return each * scores, each * mix, again_scores, again_mix

    def _alike(self, measured: Measured) -> dict[tuple[int, int, str], list[int]]:
        """Query heads × key features, × value features, kind → calls; kept between steps."""
        names = measured.modules
        if names is not self._names and list(names) != list(self._names):
            self._groups, self._few = {}, set()
            for index, call in enumerate(measured.calls):
                heads = call.queries.size(1)
                mixed = heads * call.values.size(3) * call.mixes
                kind = (heads * call.queries.size(3), mixed, call.kind)
                self._groups.setdefault(kind, []).append(index)
        self._names = names
        return self._groups

    def _parts(self, learner: Learner, measured: Measured, *, uncached: bool) -> dict[str, int]:
        """FLOPs by role from what was learned, attention and head left out."""
        new = measured.tokens if uncached else measured.new
        sequences = measured.sequences
        rows = sequences * (new if self._every_row else 1) if uncached else measured.logit_rows
        whole = Sizes(sequences, new, measured.tokens, rows)
        flat = learner.flat
        amount = whole.amount(Per.NEW)
        each = flat.get(Per.NEW, {})
        totals = {role: flops * amount for role, flops in each.items()}
        for per, of in flat.items() if len(flat) > 1 else ():
            if per is Per.NEW:
                continue
            if per is Per.START and not (uncached or measured.starts):
                continue
            amount = whole.amount(per)
            for role, flops in of.items():
                totals[role] = totals.get(role, 0) + flops * amount
        for one in learner.following:
            seq = measured.tokens
            if one.module is not None and not (uncached and _sees_itself(measured, one.module)):
                seq = measured.attended(one.module)
            more = one.growth.flops * whole._replace(seq=seq).amount(one.growth.per)
            totals[one.role] = totals.get(one.role, 0) + more
        return {role: int(flops) for role, flops in totals.items()}


def _flops(
    parts: dict[str, int], rest: tuple[int, int, int], head: tuple[int | Fraction, int, int]
) -> Flops:
    """Together: what was learned; scores, mix, head; FLOPs of a row of logits, sequences, rows."""
    row, sequences, rows = head
    return Flops(
        qkv=parts.get(roles.QKV, 0),
        scores=rest[0],
        mix=rest[1],
        output=parts.get(roles.OUTPUT, 0),
        mlp=parts.get(roles.MLP, 0),
        head=rest[2],
        head_last=int(row * sequences),
        head_all=int(row * sequences * rows),
        other=parts.get(roles.OTHER, 0),
    )


def _pairs(calls: Sequence[AttentionCall], members: Sequence[int]) -> int:
    """Pairs of a query and a key, of some of the calls."""
    sizes = [calls[index].queries.size(2) for index in members]
    return sum(map(mul, sizes, [calls[index].keys.size(2) for index in members]))


def _encoding(measured: Measured) -> tuple[Fraction, Fraction]:
    """Scores and mix of an encoder that runs inside the model's forward, per sequence."""
    every = [attention_flops(call) for call in measured.calls if call.kind == "encoder"]
    scores, mix = (sum(part) for part in zip(*every, strict=True))
    return Fraction(scores, measured.sequences), Fraction(mix, measured.sequences)


def _sees_itself(measured: Measured, module: str) -> bool:
    return any(call.module == module and call.kind == "self" for call in measured.calls)


def _calls_its_modules(model: nn.Module) -> bool:
    """Whether module hooks can be trusted: transformers' models call every module as one."""
    return MODEL.has(model)
