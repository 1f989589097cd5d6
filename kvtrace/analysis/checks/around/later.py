"""What a later step, or another call, tells of a finding that looked like something else."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from kvtrace.analysis.checks.classes import VAGUE
from kvtrace.analysis.checks.noise import Noise, drawn, largest
from kvtrace.analysis.checks.placed import placed
from kvtrace.analysis.checks.report import Finding
from kvtrace.analysis.checks.scenes.cross import of_earlier_text
from kvtrace.analysis.checks.scenes.identify import identify
from kvtrace.analysis.checks.scenes.stage import stage
from kvtrace.analysis.checks.whole_run.chosen import chosen
from kvtrace.analysis.checks.whole_run.few_bits import bits_of, explained
from kvtrace.analysis.checks.whole_run.rejected import cropped_elsewhere
from kvtrace.analysis.checks.wrong_rows.turned import rotation, shift
from kvtrace.analysis.checks.wrong_rows.unwritten import check_zero_rows
from kvtrace.trace import WEIGHTS_CHANGED, Step, Tensor, Trace

_DIFFERENT = 3
"""So many different tokens in a row are not those of an earlier place by chance."""


def reconsidered(trace: Trace, found: Finding, lane: str, limits: Noise) -> Finding:
    """A finding, by another name where a later step shows what it is.

    Args:
        trace: Whose finding.
        found: The first one.
        lane: The reference.
        limits: What is rounding.
    """
    otherwise = _otherwise(trace, found, lane, limits)
    if otherwise is not None:
        return otherwise
    stale = of_earlier_text(trace, found) if found.name in ("CONTENT", "OLD-ROWS-CHANGED") else None
    if stale is not None:
        return replace(found, name="STALE-CACHE", evidence=f"{found.evidence}; {stale}")
    if found.tensor in ("k", "v") and _of_other_weights(trace, found, lane):
        evidence = (
            f"{found.evidence}; the rows before this step were cached with other weights: those "
            "of the model changed then"
        )
        return replace(found, name="CONTENT", evidence=evidence)
    rounded = _of_rounded_rows(trace, found, lane, limits)
    if rounded is not None:
        return rounded
    if found.name in VAGUE and drawn(trace):
        again = f"{found.evidence}; it is another one in every call, without a cache too"
        if found.name == "UNKNOWN" and found.tensor == "output":
            found = replace(found, name="WEIGHTS-NOT-NORMALISED", tensor="weights")
        else:
            again += ": random numbers (dropout, noise), not the cache"
        return replace(found, evidence=again)
    return found


def _otherwise(trace: Trace, found: Finding, lane: str, limits: Noise) -> Finding | None:
    """By its name, what else a finding may be; None: it is not."""
    about = (trace, found, lane, limits)
    if found.name == "LENGTH-DEPENDENT-POSITIONS" and found.tensor == "q":
        return _turned_for_good(*about)
    if found.name == "POSITION-ROPE" and found.tensor == "q":
        return _written_over(*about) or _fed_twice(*about) or _cropped_elsewhere(trace, found)
    if found.name in ("K-NOT-WRITTEN", "V-NOT-WRITTEN"):
        return _written_apart(*about)
    if found.tensor in ("weights", "output") or found.name == "WRONG-LAYER":
        return _switched(trace, found)
    if found.name == "EVICTED-EARLY" and found.tensor == "k" and found.head is None:
        return chosen(*about)
    return None


def _switched(trace: Trace, found: Finding) -> Finding | None:
    """A layer that reads another layer's cache than before: its output shows it, or its rows do."""
    site = trace.site(found.layer)
    before = next(
        (
            one
            for one in trace.meta.sites[: site.index]
            if (one.module, one.call, one.kind) == (site.module, site.call, site.kind)
        ),
        None,
    )
    stores = [] if before is None else [trace.cache_layer(one.index) for one in (site, before)]
    if len({store.layer for store in stores}) < 2 or stores[0].layer == site.layer:
        return None
    now, then = (store.layer for store in stores)
    evidence = (
        f"{site.module or 'the model'} reads the rows of layer {now}'s cache in this step, and "
        f"read those of layer {then} before"
    )
    return replace(found, name="WRONG-LAYER", tensor="k", evidence=evidence)


def _of_other_weights(trace: Trace, found: Finding, lane: str) -> bool:
    """Whether the weights changed just before a finding: earlier steps were not compared."""
    changed = any(note.text.endswith(WEIGHTS_CHANGED) for note in trace.notes)
    parent = trace.step(found.step).parent
    return changed and parent is not None and trace.compared(parent, lane) is None


def _of_rounded_rows(trace: Trace, found: Finding, lane: str, limits: Noise) -> Finding | None:
    """What follows from rows of few bits, each of which is moved by less than rounding may.

    In narrow types such rows pass for right, and only behind some layers is their sum too much.
    """
    if found.name not in VAGUE or not found.apart:
        return None
    about, end = (lane, limits), trace.site(found.layer).layer
    step = trace.step(found.step)
    sites = sorted((trace.site(one) for one in step.attending), key=lambda one: one.layer)
    for site in sites:
        if site.kind != "self" or site.layer > end:
            continue
        bits = bits_of(trace, step, site.index, *about)
        if not explained(bits, found.apart):
            continue
        tensor, few = next(iter(bits.items()))
        # the oldest step in which they are so is where it begins
        steps = (trace.step(one) for one in trace.numbers if one <= found.step)
        so = (one for one in steps if site.index in one.attending)
        first = next(one for one in so if tensor in bits_of(trace, one, site.index, *about))
        evidence = (
            f"the rows of {tensor} take {few.what}, which moves them by {few.moved:.1e} of the "
            f"largest; in step {found.step} layer {end} follows from it: {found.evidence}"
        )
        told = Finding("DTYPE", first.number, site.index, tensor, evidence)
        told = replace(told, apart=found.apart, limit=found.limit)
        return placed(trace, told, limits, lane)
    return None


def _turned_for_good(trace: Trace, found: Finding, lane: str, limits: Noise) -> Finding | None:
    """Queries with other frequencies even in the last step, where both lanes are equally long.

    Told only where the values are right: else queries differ as a consequence.
    """
    last = trace.numbers[-1]
    compared = trace.compared(last, lane)
    if compared is None or last == found.step:
        return None
    apart = largest(compared, len(limits.threshold))[found.layer]
    beyond = apart > limits.threshold[found.layer]
    if not beyond[Tensor.QUERIES] or not apart[Tensor.VALUES] >= 0 or beyond[Tensor.VALUES]:
        return None
    evidence = (
        f"{found.evidence}; so it is in step {last}, where both lanes are equally long: the base "
        "or the scaling of the rotary tables differs"
    )
    return replace(found, name="POSITION-ROPE", evidence=evidence)


def _written_over(trace: Trace, found: Finding, lane: str, limits: Noise) -> Finding | None:
    """A query at the position that follows, whose row took the slot of the one before.

    A single token that nobody rejected is not fed for another one: the text goes on, and the
    buffer does not. A row that is not there any more may have been taken off for a token that was
    rejected, unless what is fed is the likeliest after that.
    """
    step = trace.step(found.step)
    if step.parent is None or step.packed is not None:
        return None
    before, sequence = trace.step(step.parent), found.sequences[0] if found.sequences else 0
    if (step.new, before.new) != (1, 1) or sequence >= before.num_sequences:
        return None
    if step.events and not _goes_on(step, before, sequence):
        return None
    place = step.positions[sequence][0]
    tolerance = limits.tolerance(found.layer)
    again = before.positions[sequence][0] == place
    scene = stage(trace, found.step, found.layer, sequence, tolerance, lane) if again else None
    if scene is None or not scene.changed[scene.supposed == scene.places[0]].any():
        return None
    turn = rotation(scene.cached.queries, scene.reference.queries, scene.atol.queries)
    if turn is None or shift(turn, 1) != 1:
        return None
    slot = scene.slots[scene.supposed == scene.places[0]][0]
    evidence = (
        f"the query is that of position {place + 1}, and its row stands in slot {slot}, over that "
        f"of position {place}"
    )
    return replace(found, name="ROW-OVERWRITTEN", tensor="k", evidence=evidence, row=int(slot))


def _goes_on(step: Step, before: Step, sequence: int) -> bool:
    """Whether rows were taken off alone, and the likeliest token after them was fed."""
    if sequence >= len(before.top) or any(one.kind != "crop" for one in step.events):
        return False
    fed = step.tokens[sequence]
    return before.tokens[sequence] != fed == before.top[sequence].ids[:1]


def _cropped_elsewhere(trace: Trace, found: Finding) -> Finding | None:
    """A query at the position of its token, behind rows of which one too few or too many is left.

    Which of both is wrong, the rows or the position, the tokens tell.
    """
    parent = trace.step(found.step).parent
    if parent is None or not trace.step(parent).likeliest:
        return None
    other = cropped_elsewhere(trace)
    if other is None or other.step != found.step:
        return None
    return replace(other, evidence=f"{other.evidence}; {found.evidence}", layer=found.layer)


def _fed_twice(trace: Trace, found: Finding, lane: str, limits: Noise) -> Finding | None:
    """Tokens that were given positions at which the cache still holds rows of the very same ones.

    Another position of other tokens is counted wrong; that of the same ones is right, and they are
    in the cache twice.
    """
    sequence = found.sequences[0] if found.sequences else 0
    scene = stage(trace, found.step, found.layer, sequence, limits.tolerance(found.layer), lane)
    reference = trace.reference(found.step, sequence, lane)
    if scene is None or scene.told is None or scene.held is None or reference is None:
        return None
    if not np.isin(scene.told, scene.held[scene.seen]).all():
        return None
    text = reference.step.tokens[sequence]
    places = dict(zip(reference.step.positions[sequence], range(len(text)), strict=True))
    new = text[reference.first - reference.led : reference.places - reference.led]
    then = tuple(text[places[at]] for at in scene.told.tolist() if at in places)
    if new != then or len(set(new)) < _DIFFERENT:
        return None
    slots = scene.slots[np.isin(scene.held, scene.told)]
    evidence = (
        f"the {len(new)} tokens of this step are those of positions {scene.told[0]} to "
        f"{scene.told[-1]}, where the step puts them, too, and slot {slots[0]} and others still "
        "hold their rows: they were fed twice"
    )
    row = int(np.flatnonzero(scene.slots == slots[0])[0])
    found = replace(found, name="DUPLICATE-ROWS", tensor="k", head=None, evidence=evidence)
    return replace(found, row=row, slot=int(slots[0]))


def _written_apart(trace: Trace, found: Finding, lane: str, limits: Noise) -> Finding | None:
    """Half a row that was not there, and in the next step is, in another slot."""
    after = (n for n in trace.numbers if n > found.step and trace.step(n).parent == found.step)
    number = next(after, None)
    if number is None:
        return None
    tolerance = limits.tolerance(found.layer)
    sequence = found.sequences[0] if found.sequences else 0
    scene = stage(trace, number, found.layer, sequence, tolerance, lane)
    one = None if scene is None else check_zero_rows(scene, identify(scene))
    if one is None or one.name != "MISALIGNED":
        return None
    return replace(
        found, name=one.name, evidence=f"{found.evidence}; in step {number} {one.evidence}"
    )
