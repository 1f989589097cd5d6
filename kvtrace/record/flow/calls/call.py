"""One attention call as the data flow showed it: q, k, v, mask, bias and output in our shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from kvtrace.record.flow.calls.explain import (
    Explained,
    UnexplainedError,
    explain,
    from_weights,
    same_mask,
    seen_in,
)
from kvtrace.record.flow.calls.kvheads import blank, repeats, widened
from kvtrace.record.flow.calls.prove import FlowCall, refusal
from kvtrace.record.flow.marks.mark import Mark
from kvtrace.record.flow.marks.names import COPIES, RANDOM
from kvtrace.record.flow.marks.weights import DIVIDED, ROUNDED, SIGMOIDAL
from kvtrace.record.flow.plans.arrange import AmbiguousError
from kvtrace.record.flow.plans.mix import Mix
from kvtrace.record.flow.plans.plan import Plan

if TYPE_CHECKING:
    from kvtrace.record.flow.modes.route import Walk

HARMLESS = frozenset((*RANDOM, *COPIES))
"""Between softmax and values these leave the weights what they are."""

FIRST = 2
"""Calls of each plan that are proved, before only one in `EVERY` is."""
EVERY = 16
ROUNDINGS = 8
"""Steps of the last digit by which scaling, and adding nothing, may change a score."""


def read(mix: Mix, plan: Plan) -> FlowCall:
    """Read an attention call off its last product, weights · values, and let it prove itself.

    The first calls of a plan, and one in sixteen after, are calculated again in full. Between
    those, calls with nothing but scale, softcap and mask are read by the same plan.

    Raises:
        AmbiguousError: A part of it can't be told apart.
        UnexplainedError: It does not repeat what the model calculated.
    """
    mark = mix.mark
    q, k = _joined(mark, plan)
    v, out = plan.values.apply(mix.values[0]), plan.output.apply(mix.product.out)
    if v.shape[2] > k.shape[2]:  # a row of zeros for the sink
        v = v.narrow(2, mark.letters.longer[mark.key][1], k.shape[2])
    if q.shape[1] != out.shape[1]:
        q = q.expand(-1, out.shape[1], -1, -1)
    if plan.plain and not due(plan) and not (mark.added and _adds(mix, plan, q, k)):
        return plainly(plan, (q, k, v, out), mark.logits, (mark.scale, mark.cap), _places(mix))
    with uncounted(q, k, v, out):
        return _proved(mix, plan, (q, k, v, out))


def due(plan: Plan) -> bool:
    """Whether the next call of a plan is to be calculated again in full."""
    return plan.proven < FIRST or plan.proven % EVERY == 0


def plainly(
    plan: Plan,
    rows: tuple[Tensor, Tensor, Tensor, Tensor],
    logits: Tensor | None,
    factors: tuple[float, float | None],
    places: tuple[str, str],
) -> FlowCall:
    """One more call of a plan that has proved itself; only its mask is looked at.

    Args:
        plan: It.
        rows: Queries, keys, values and output, arranged.
        logits: What the softmax was given, where it was seen.
        factors: Scale and softcap.
        places: "file.py:line" of q·kᵀ and of weights·v.
    """
    plan.proven += 1
    q, k, v, out = rows
    visible = None
    if plan.logits is not None and logits is not None:
        visible = _visible(plan.logits.apply(logits))
    if plan.group > 1:
        k, v = k[:, :: plan.group], v[:, :: plan.group]
    scored, place = places
    return FlowCall(
        q, k, v, out, *factors, visible, place=place, assumed=plan.assumed, scored=scored
    )


def _places(mix: Mix) -> tuple[str, str]:
    """Where scores and output are computed."""
    return mix.mark.products[0].place, mix.place


def _adds(mix: Mix, plan: Plan, q: Tensor, k: Tensor) -> bool:
    """Whether what is added to the scores now does more than hide rows, as it did before."""
    with uncounted(q, k):
        how, sinks = _how(mix, plan, q, k)
    return any(one is not None for one in (how.bias, how.shift, how.head_scale, sinks))


@torch.no_grad()
def only_hides(walk: Walk) -> bool:
    """Whether the logits are the scores times the scale, but for hidden rows."""
    route = walk.route
    scores, logits = walk.results[0], walk.results[route.logits]
    if route.softcap is not None or scores.shape != logits.shape:
        return False
    with uncounted(scores, logits):
        product = scores * route.scale
        rest = torch.where(seen_in(logits), logits - product, 0.0)
        allowed = ROUNDINGS * torch.finfo(logits.dtype).eps * product.abs().amax()
        return bool(rest.abs().amax() <= allowed)


def along(walk: Walk) -> FlowCall:
    """The call that has gone a route to its end."""
    route, first, last = walk.route, walk.done[0], walk.done[-1]
    plan = route.plan
    _, _, query, key = plan.parts[0]
    q, k = query.apply(first.args[route.queries.place]), key.apply(first.args[route.keys.place])
    v, out = plan.values.apply(last.args[route.values.place]), plan.output.apply(last.out)
    if q.shape[1] != out.shape[1]:
        q = q.expand(-1, out.shape[1], -1, -1)
    logits = walk.results[route.logits]
    return plainly(
        plan, (q, k, v, out), logits, (route.scale, route.softcap), (walk.scored, route.place)
    )


def uncounted(*tensors: Tensor) -> AbstractContextManager[object]:
    """Whoever counts the model's operators must not count ours."""
    if any(type(one) not in (Tensor, nn.Parameter) for one in tensors):
        return nullcontext()
    return without_counting()


def without_counting() -> AbstractContextManager[object]:
    """Nobody counts the operators that run inside, on plain tensors."""
    guard: AbstractContextManager[object] = torch._C._DisableTorchDispatch()
    return guard


def _proved(mix: Mix, plan: Plan, rows: tuple[Tensor, Tensor, Tensor, Tensor]) -> FlowCall:
    """Explain the logits, and calculate the whole again."""
    q, k, v, out = rows
    mark = mix.mark
    how, sinks = _how(mix, plan, q, k)
    visible = how.visible
    odd = any(name not in HARMLESS for name in mark.changed)
    if odd:
        shown = plan.weights.apply(mix.weights[0]) > 0
        visible = shown if visible is None else visible & shown
    random = None
    if any(name in RANDOM for name in mark.changed) and mark.weights is not None and plan.logits:
        random, _ = _without_sink(mark, plan.logits.apply(mark.weights), k.shape[2])
    if how.head_scale is not None:
        q = q * how.head_scale[None, :, None, None].to(q.dtype)
    k, v = widened(k, v)
    group = repeats(k, v)
    if group > 1:
        k, v = k[:, ::group], v[:, ::group]
    call = FlowCall(
        q,
        k,
        v,
        out,
        how.scale,
        how.softcap,
        visible,
        how.bias,
        sinks,
        place=mix.place,
        weights=random,
        assumed=plan.assumed,
        rule=SIGMOIDAL if mark.normaliser == SIGMOIDAL else "softmax",
        scored=mark.products[0].place,
    )
    why = refusal(call)
    if why:
        after = f", after {' and '.join(mark.changed)}" if odd else ""
        raise UnexplainedError(why + after, replace(call, visible=how.visible))
    if not blank(k, v):  # zeros prove nothing of later calls
        plan.proven += 1
        plan.group = group
    special = (how.bias, how.shift, how.head_scale, sinks, random)
    plan.plain = all(x is None for x in special) and not odd and mark.logits is not None
    plan.plain = plan.plain and call.rule == "softmax"
    return call


def _how(mix: Mix, plan: Plan, q: Tensor, k: Tensor) -> tuple[Explained, Tensor | None]:
    """How q·kᵀ became the logits, and the sinks beside them."""
    mark = mix.mark
    if mark.logits is None or plan.logits is None:
        return from_weights(q, k, plan.weights.apply(mix.weights[0])), None
    logits, column = _without_sink(mark, plan.logits.apply(mark.logits), k.shape[2])
    shifts = mark.normaliser != SIGMOIDAL
    # products that are none of queries with keys act as a bias
    added = mark.added or len(plan.parts) < len(mark.products)
    how = explain(q, k, logits, mark.scale, mark.cap, added=added, shifts=shifts)
    if column is None and mark.normaliser == DIVIDED:
        column = _left_over(logits, plan.weights.apply(mix.weights[0]))
    return how, None if column is None else _same_for_all(column, how.shift)


def _joined(mark: Mark, plan: Plan) -> tuple[Tensor, Tensor]:
    """Queries and keys; several products summed are one over the features side by side."""
    queries, keys, alphas = [], [], []
    for at, left, query, key in plan.parts:
        part = mark.products[at]
        queries.append(query.apply(part.left if left else part.right))
        keys.append(key.apply(part.right if left else part.left))
        alphas.append(part.alpha)
    if len(queries) == 1:
        return queries[0], keys[0]
    heads, kv_heads = max(q.shape[1] for q in queries), max(k.shape[1] for k in keys)
    scaled = [
        q.expand(-1, heads, -1, -1) * (alpha / alphas[0])
        for q, alpha in zip(queries, alphas, strict=True)
    ]
    return torch.cat(scaled, -1), torch.cat([k.expand(-1, kv_heads, -1, -1) for k in keys], -1)


def _visible(logits: Tensor) -> Tensor | None:
    visible = seen_in(logits)
    return None if bool(visible.all()) else same_mask(visible)


def _without_sink(mark: Mark, logits: Tensor, seq: int) -> tuple[Tensor, Tensor | None]:
    """Logits of the keys, and of the one extra column if there is one."""
    extra = logits.shape[-1] - seq
    if not extra:
        return logits, None
    if extra != 1:
        raise AmbiguousError(f"the softmax has {extra} columns more than there are keys")
    before = mark.letters.longer[mark.key][1]
    return logits.narrow(-1, before, seq), logits[..., :1] if before else logits[..., -1:]


def _left_over(logits: Tensor, weights: Tensor) -> Tensor | None:
    """Logit of what the weights of each query leave of 1: exp(x) / (1 + Σ exp(x)) leaves some."""
    share = 1.0 - weights.to(logits.dtype).sum(-1, keepdim=True)
    if float(share.abs().amax()) <= ROUNDED or float(share.amin()) <= 0:
        return None
    return logits.logsumexp(-1, keepdim=True) + share.log() - (1.0 - share).log()


def _same_for_all(sinks: Tensor, shift: Tensor | None) -> Tensor:
    """The sink of each head, [heads]."""
    if shift is not None:
        sinks = sinks - shift
    first = sinks[:1, :, :1]
    if float((sinks - first).abs().amax()) > 1e-4 * (1.0 + float(first.abs().amax())):
        raise AmbiguousError("the extra column of the softmax is not the same for all queries")
    return first[0, :, 0, 0]


def unrepeated(call: FlowCall) -> FlowCall:
    """A call whose keys and values were repeated for every query head, without repetition."""
    keys, values = widened(call.keys, call.values)
    group = repeats(keys, values)
    return replace(call, keys=keys[:, ::group], values=values[:, ::group])


@contextmanager
def aside(like: Tensor, *more: Tensor) -> Iterator[None]:
    """Calculate beside the model: no graph, no autocast, and nobody who watches sees it."""
    device = like.device.type
    with torch.no_grad(), torch._C.DisableTorchFunction(), uncounted(like, *more):
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                yield
        else:
            yield
