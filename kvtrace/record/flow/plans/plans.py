"""Which plan a call has: that of an earlier call of the same code, or one that is made for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtrace.record.flow.plans.arrange import Sizes
from kvtrace.record.flow.plans.mix import Mix
from kvtrace.record.flow.plans.plan import Certain, Plan, make, signature


@dataclass(slots=True)
class Plans:
    """The plans so far.

    Attributes:
        proven: Modules of which a call has proved itself.
    """

    proven: set[str] = field(default_factory=set)
    _made: dict[tuple[object, ...], Plan] = field(default_factory=dict)
    _certain: dict[tuple[str, int, int], Certain] = field(default_factory=dict)

    def of(self, mix: Mix, path: str, sizes: Sizes) -> Plan:
        """How the tensors of a call lie.

        Args:
            mix: Its last product.
            path: The module that makes it.
            sizes: Of the step, and of the module's own input.

        Raises:
            AmbiguousError: Sizes coincide so that the axes can't be told apart.
        """
        code = (*signature(mix), sizes)
        plan = self._made.get((path, *code))
        if plan is None:
            known = (mix.place, mix.product.left.dim(), mix.product.right.dim())
            same, before = self._made.get(code), self._certain.get(known)
            plan = same.afresh if same else make(mix, sizes, before, path in self.proven)
            if plan.certain is not None:
                self._certain[known], self._made[code] = plan.certain, plan
            self._made[path, *code] = plan
        return plan
