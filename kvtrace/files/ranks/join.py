"""From what each rank says of a step, or of a comparison, to what the whole model did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np
from msgspec.structs import replace

from kvtrace.errors import TraceError
from kvtrace.files.comparison import ARRAYS
from kvtrace.files.ranks.plan import Plan
from kvtrace.trace import Cost, Flops, LaneStep, SiteStep, Step, Tensor, dtypes
from kvtrace.trace.dtypes import Array

_TOLD_ALIKE = ("tokens", "positions", "phase", "parent", "caches", "events")


def join_steps(names: Sequence[str], steps: Sequence[Step]) -> Step:
    """One step of all ranks. Costs are what they did together, times those of the slowest.

    Args:
        names: File name of each rank.
        steps: The step as each recorded it.

    Raises:
        TraceError: They do not tell of the same step.
    """
    first, *others = steps
    for name, step in zip(names[1:], others, strict=True):
        for part in _TOLD_ALIKE:
            if getattr(step, part) != getattr(first, part):
                raise TraceError(
                    f"step {first.number}: {part} of {name} are not those of {names[0]}; "
                    "the ranks did not run the same. Record all ranks of one run."
                )
    texts = {token: text for step in reversed(steps) for token, text in step.texts.items()}
    chosen = tuple(
        next((one for one in found if one is not None), None)
        for found in zip_longest(*(step.chosen for step in steps))  # a rank may know none
    )
    return replace(
        first,
        chosen=chosen,
        sites=tuple(_join_sites(names, steps, group) for group in first.sites),
        cost=_cost([step.cost for step in steps]),
        elapsed_ns=max(step.elapsed_ns for step in steps),
        recorder_ns=max(step.recorder_ns for step in steps),
        texts=texts,
    )


def _join_sites(names: Sequence[str], steps: Sequence[Step], group: SiteStep) -> SiteStep:
    """A group of sites: the worst error and the largest output of any rank."""
    errors: list[float | None] = []
    scales: list[float] = []
    bad: list[int] = []
    for site in group.sites:
        found = [_outcome(name, step, site, group) for name, step in zip(names, steps, strict=True)]
        known = [error for error, _, _ in found if error is not None]
        errors.append(max(known) if len(known) == len(found) else None)
        scales.append(max(scale for _, scale, _ in found))
        bad.append(sum(count for *_, count in found))
    return replace(
        group, check_error=tuple(errors), check_scale=tuple(scales), nonfinite=tuple(bad)
    )


def _outcome(name: str, step: Step, site: int, group: SiteStep) -> tuple[float | None, float, int]:
    """(error, scale, NaN and Inf) of a site in one rank."""
    own = step.site_step(site)
    if own is None or (own.mask, own.new) != (group.mask, group.new):
        raise TraceError(
            f"step {step.number}: in {name}, site {site} did not attend as in the first rank; "
            "the ranks did not run the same. Record all ranks of one run."
        )
    place = own.sites.index(site)
    return own.check_error[place], own.check_scale[place], own.nonfinite[place]


def counted_once(
    step: Step, plan: Plan, written: Callable[[int, int, Tensor], Array | None]
) -> Step:
    """A joined step in which NaN and Inf of a head that several ranks hold count once.

    Args:
        step: It.
        plan: Which heads those are.
        written: (rank, site or cache layer, tensor) to what the rank wrote in the step.
    """
    groups = []
    for group in step.sites:
        bad = list(group.nonfinite)
        for place, site in enumerate(group.sites):
            if bad[place]:
                bad[place] -= _counted_again(plan, site, written)
        groups.append(replace(group, nonfinite=tuple(bad)))
    return replace(step, sites=tuple(groups))


def _counted_again(
    plan: Plan, site: int, written: Callable[[int, int, Tensor], Array | None]
) -> int:
    found = 0
    meta = plan.meta.sites[site]
    for tensor in Tensor:
        kv = tensor in (Tensor.KEYS, Tensor.VALUES)
        index = meta.reads if kv else site
        dtype = plan.meta.cache_layers[index].dtype if kv else meta.dtype
        for _, (rank, own) in (plan.layers[index] if kv else plan.sites[index]).twins:
            rows = written(rank, index, tensor)
            if rows is not None:
                found += int((~np.isfinite(dtypes.widen(rows[:, own], dtype))).sum())
    return found


def _cost(costs: Sequence[Cost]) -> Cost:
    """What all ranks did together."""
    return Cost(
        _flops([one.cached for one in costs]),
        _flops([one.recomputed for one in costs]),
        *(
            sum(getattr(one, name) for one in costs)
            for name in Cost.__struct_fields__
            if name not in ("cached", "recomputed")
        ),
    )


def _flops(parts: Sequence[Flops]) -> Flops:
    return Flops(*(sum(getattr(one, name) for one in parts) for name in Flops.__struct_fields__))


def join_comparisons(plan: Plan, found: Sequence[LaneStep]) -> LaneStep:
    """How another lane compares, head by head from the rank that has the head."""
    first = found[0]
    num_sites = min(len(one.max_abs) for one in found)
    shape = (num_sites, len(Tensor), plan.meta.max_heads)
    arrays: dict[str, np.ndarray] = {
        name: np.full(shape, np.nan if kind.kind == "f" else -1, kind)
        for name, kind in ARRAYS.items()
    }
    for index in range(min(num_sites, len(plan.sites))):
        for tensor in Tensor:
            kv = tensor in (Tensor.KEYS, Tensor.VALUES)
            heads = plan.layers[plan.meta.sites[index].reads] if kv else plan.sites[index]
            for head, (rank, own) in enumerate(heads.places):
                for name, array in arrays.items():
                    theirs = getattr(found[rank], name)
                    if own < theirs.shape[2]:
                        array[index, tensor, head] = theirs[index, tensor, own]
    spent = [one.elapsed_ns for one in found if one.elapsed_ns is not None]
    alike = all(one.passes == first.passes for one in found)
    return LaneStep(
        lane=first.lane,
        step=first.step,
        logits=first.logits,
        elapsed_ns=max(spent) if len(spent) == len(found) else None,
        passes=first.passes if alike else (),
        **arrays,
    )
