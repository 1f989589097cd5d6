"""How what was heard of attention calls becomes the calls.

Where the logits are still the scores times the scale but for hidden rows, a call is the one before,
some rows on. Where they are not, it is explained anew and proves itself. Calls whose tensors were
written over since are not told.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.flow.calls.call import FIRST, ROUNDINGS, aside
from kvtrace.record.flow.calls.explain import UnexplainedError, explain, same_mask, seen_in
from kvtrace.record.flow.calls.fused import of_sdpa
from kvtrace.record.flow.calls.listen import Listening
from kvtrace.record.flow.calls.parts import Note, Part, intact
from kvtrace.record.flow.calls.placeholders import computed
from kvtrace.record.flow.calls.prove import FlowCall, capped, refusal
from kvtrace.record.flow.modes.route import Route, equal, numbers_of

Heard = tuple[Part, Sequence[Note]]

_WRITTEN_OVER = "its rows were written over in a step before they could be looked at"

_FACTOR = 1e-5
"""Relative difference by which a scale that heads were given one by one is the same for all."""


@torch.no_grad()
def read(
    heard: Sequence[Heard], listening: Listening, number: int | None
) -> tuple[list[AttentionCall], bool]:
    """The calls, in order; those that can't be read are left out, and it is said why.

    Args:
        heard: Of each call.
        listening: Is told of what could not be read.
        number: Of the forward: of fused calls, another one is calculated again each time; of
            others, all while they are new. None: the calls were read before, in another way.

    Returns:
        They, and whether all of them are like those before.
    """
    if not heard:
        return [], True
    with aside(heard[0][1][0].out):
        hides = _hides(heard)
        alike = all(
            part.route is None or one[0] for (part, _), one in zip(heard, hides, strict=True)
        )
        out: list[AttentionCall] = []
        for place, ((part, notes), plain) in enumerate(zip(heard, hides, strict=True)):
            where = (part.like.module, part.like.code)
            try:
                if not intact(notes):
                    raise UnexplainedError(_WRITTEN_OVER)
                if part.route is None:
                    turn = number is not None and number % len(heard) == place
                    call = _fused(part, notes[0], listening, turn)
                else:
                    call = _routed(part.route, notes, plain, again=number is None)
            except Exception as error:
                listening.reasons.setdefault(where, str(error).partition("\n")[0])
                continue
            told = computed(call.detached, part.like.module, listening.notes)
            out.append(_call(part, told))
    return out, alike and len(out) == len(heard)


def _call(part: Part, call: FlowCall) -> AttentionCall:
    like = part.like
    return AttentionCall(
        like.module,
        like.call,
        like.layer,
        like.kind,
        call.queries,
        call.keys,
        call.values,
        call.output,
        call.scale,
        call.softcap,
        visible=call.visible,
        bias=call.bias,
        sinks=call.sinks,
        level=like.level,
        code=call.place,
        scores_code=like.scores_code if call.place else "",
    )


def _fused(part: Part, note: Note, listening: Listening, prove: bool) -> FlowCall:
    heads = listening.heads.get((part.like.module, part.like.code))
    call = of_sdpa(note.args, note.named, note.out, listening.sizes, part.like.code, heads)
    if part.group > 1:
        keys, values = call.keys[:, :: part.group], call.values[:, :: part.group]
        call = replace(call, keys=keys, values=values)
    why = refusal(call) if prove else ""
    if why:
        raise UnexplainedError(why)
    return call


def _hides(heard: Sequence[Heard]) -> list[tuple[bool, bool]]:
    """Per call: whether its logits are its scores times the scale, and whether all are seen."""
    found = [(False, False)] * len(heard)
    groups: dict[tuple[object, ...], list[tuple[int, Route]]] = {}
    for place, (part, notes) in enumerate(heard):
        if part.route is None or not _fits(part, part.route, notes):
            continue
        scores, logits = notes[0].out, notes[1].args[0]
        kind = (logits.shape, scores.dtype, logits.dtype, logits.device)
        key = (*kind, part.route.scale, part.route.softcap)
        groups.setdefault(key, []).append((place, part.route))
    for members in groups.values():
        three = [heard[place][1] for place, _ in members]
        logits = torch.stack([notes[1].args[0] for notes in three])
        scores = torch.stack([notes[0].out.reshape(logits.shape[1:]) for notes in three])
        route = members[0][1]
        product = capped(scores * route.scale, route.softcap)
        seen = seen_in(logits)
        rest = torch.where(seen, logits - product, 0.0).flatten(1).abs().amax(1)
        allowed = ROUNDINGS * torch.finfo(logits.dtype).eps * product.flatten(1).abs().amax(1)
        both = zip((rest <= allowed).tolist(), seen.flatten(1).all(1).tolist(), strict=True)
        for (place, _), pair in zip(members, both, strict=True):
            found[place] = pair
    return found


def _fits(part: Part, route: Route, notes: Sequence[Note]) -> bool:
    """Whether the functions were given what those of the route were."""
    first, softmax, last = notes
    begin, end = route.strides[0], route.strides[-1]
    logits, scores, weights = softmax.args[0], first.out, softmax.out
    if not all(isinstance(one, Tensor) for one in (logits, scores, weights)):
        return False
    if not begin.fits(begin.function, first.args, first.named, []):
        return False
    rows = (route.queries, first), (route.keys, first), (route.values, last)
    if not all(one.fits(note.args[one.place]) for one, note in rows if one.place < len(note.args)):
        return False
    if part.numbers != numbers_of(softmax.args, (0,)) or not equal(softmax.named, part.named or {}):
        return False
    place, _ = end.links[0]
    if len(last.args) != end.args or last.named or scores.numel() != logits.numel():
        return False
    return _are(last.args[place], weights) and not isinstance(logits, nn.Parameter)


def _are(given: object, weights: Tensor) -> bool:
    """Whether the values met the weights that the softmax made."""
    if given is weights:
        return True
    if not isinstance(given, Tensor) or given.numel() != weights.numel():
        return False
    return torch.equal(given, weights.to(given.dtype).reshape(given.shape))


def _routed(
    route: Route, notes: Sequence[Note], plain: tuple[bool, bool], *, again: bool
) -> FlowCall:
    """A call that went a route, or begins and ends like one.

    Args:
        route: It.
        notes: Of the call.
        plain: What `_hides` says of it.
        again: It was read before.
    """
    plan, (first, softmax, last) = route.plan, notes
    _, _, query, key = plan.parts[0]
    q, k = query.apply(first.args[route.queries.place]), key.apply(first.args[route.keys.place])
    v, out = plan.values.apply(last.args[route.values.place]), plan.output.apply(last.out)
    if q.shape[1] != out.shape[1]:
        q = q.expand(-1, out.shape[1], -1, -1)
    alike, all_seen = plain
    logits = None
    if plan.logits is not None and not (alike and all_seen):
        logits = plan.logits.apply(softmax.args[0])
    if alike:
        visible = None if logits is None else same_mask(seen_in(logits))
        if plan.group > 1:
            k, v = k[:, :: plan.group], v[:, :: plan.group]
        factors = route.scale, route.softcap
        call = FlowCall(q, k, v, out, *factors, visible, place=route.place, assumed=plan.assumed)
        why = refusal(call) if plan.proven < FIRST and not again else ""
        if why:
            raise UnexplainedError(why)
        plan.proven += not again
        return call
    if logits is None:
        raise UnexplainedError("it is not like the call before, and its logits were not seen")
    return _anew(route, (q, k, v, out), logits)


def _anew(route: Route, rows: tuple[Tensor, Tensor, Tensor, Tensor], logits: Tensor) -> FlowCall:
    """A call whose logits are other than the route's: explained by its numbers, and proved.

    Where its code is was not looked at, and may be elsewhere now.
    """
    q, k, v, out = rows
    scale, factor = route.scale, None
    try:
        how = explain(q, k, logits, scale, route.softcap, added=False)
        factor = how.head_scale
    except UnexplainedError:
        how = explain(q, k, logits, scale, route.softcap, added=True)
    if factor is not None:
        if float((factor - factor[0]).abs().amax()) > _FACTOR * float(factor[0].abs()):
            q = q * factor[None, :, None, None].to(q.dtype)
        else:
            scale = float(f"{scale * float(factor.mean()):.6g}")
    group = route.plan.group
    call = FlowCall(
        q,
        k[:, ::group],
        v[:, ::group],
        out,
        scale,
        how.softcap,
        how.visible,
        how.bias,
        assumed=route.plan.assumed,
    )
    why = refusal(call)
    if why:
        raise UnexplainedError(why)
    return call
