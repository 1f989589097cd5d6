"""Everything a trace says, as lines of text: what `kvtrace show` prints.

It also stands in for the screen where there is no terminal. Foreign strings are sanitised here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby

from kvtrace import units
from kvtrace.analysis.cost.costs import Logits, step_cost, why
from kvtrace.analysis.cost.history import history, so_far
from kvtrace.analysis.cost.memory import cache_memory
from kvtrace.analysis.cost.savings import further, savings
from kvtrace.analysis.lanes.compare import reason_of
from kvtrace.analysis.lanes.parting import first_parting, largest_difference, worst
from kvtrace.analysis.rows.packed import part_text
from kvtrace.analysis.summary import summary
from kvtrace.cli.show.shapes import caches, sites, span
from kvtrace.errors import KvtraceError
from kvtrace.tables import section, table
from kvtrace.text import safe, token
from kvtrace.trace import Lane, Sampling, Step, Trace

_TOKENS_SHOWN = 8
_RIVALS_SHOWN = 5
_NO_TOKENIZER = "no tokenizer, so that ids are shown: kvtrace.record(…, tokenizer=…) names one"


def whole(trace: Trace, numbers: Sequence[int]) -> list[str]:
    """The run, and the steps of the given numbers; what can't be read says so in its place."""
    steps = _steps(trace, numbers)
    lanes = readable(
        lambda: [line for lane in trace.meta.lanes for line in _lane(trace, lane, numbers)]
    )
    cost = readable(lambda: _so_far(trace, numbers))
    return [
        *head(trace),
        *section("warnings", warnings(trace)),  # last to be asked: reading finds damage
        *section("attention", sites(trace.meta.sites)),
        *section("cache", caches(trace.meta.cache_layers)),
        *section("steps", steps),
        *section("lanes", lanes),
        *section("notes", [_note(trace, i) for i in range(len(trace.notes))]),
        *section("cost so far", cost),
    ]


def readable(tell: Callable[[], list[str]]) -> list[str]:
    """What is told, or why it can't be read."""
    try:
        return tell()
    except KvtraceError as error:
        return [f"can't be read: {safe(str(error), 1000)}"]


def _tokenizer(trace: Trace) -> str:
    """What made ids of text; where nobody named it and ids are all there is, how to name one."""
    name = safe(trace.meta.model.tokenizer)
    return name or ("no tokenizer" if _has_texts(trace) else _NO_TOKENIZER)


def _has_texts(trace: Trace) -> bool:
    """Whether tokens of the first step have a text, as far as it can be read."""
    try:
        fed = [one for number in trace.numbers[:1] for one in trace.step(number).tokens[0]]
    except (KvtraceError, IndexError):
        return True
    return not fed or any(trace.token_text(one) != f"<{one}>" for one in fed)


def head(trace: Trace) -> list[str]:
    """What was recorded: model, run, prompt, how it ended."""
    card = trace.meta.model
    model = [card.class_name, card.architecture, card.dtype, card.attention, card.device]
    size = f"{units.count(card.parameter_count)} parameters, {units.byte_size(card.weight_bytes)}"
    ending = trace.ending
    ended = "incomplete: the recording did not end, or still goes on"
    if ending is not None:
        ended = safe(ending.reason) + (f" ({safe(ending.text)})" if ending.text else "")
    versions = ", ".join(f"{name} {value}" for name, value in trace.meta.versions.items())
    rows = [
        ["trace", f"{safe(trace.name)}, {units.counted(len(trace), 'step')}, ended: {ended}"],
        ["model", f"{safe(card.name)}: {safe(', '.join(filter(None, model)))}; {size}"],
        ["weights", safe(card.weights or "not pinned")],
        [
            "tokens",
            f"{_tokenizer(trace)}; context {card.context_length or '–'}",
        ],
        ["run", _run(trace.meta.sampling)],
        ["prompt", safe(trace.meta.prompt, 2000) or _no_prompt(trace.meta.sampling)],
        ["versions", safe(versions, 1000)],
    ]
    return table(rows)


def _no_prompt(sampling: Sampling) -> str:
    """What is said for a prompt that is empty, or that no text is known of."""
    return "the recorded program's own" if sampling.driver == "caller" else "∅"


def _run(sampling: Sampling) -> str:
    """Who chose the tokens, and how."""
    if sampling.driver == "caller":
        return "the recorded program gave the tokens"
    parts = [safe(sampling.driver)]
    if sampling.max_new_tokens:
        parts.append(f"{units.counted(sampling.max_new_tokens, 'new token')} asked for")
    if sampling.temperature:
        parts.append(f"temperature {sampling.temperature:g}, top-k {sampling.top_k or 'all'}")
        parts.append(f"seed {sampling.seed}")
    else:
        parts.append("greedy")
    return ", ".join(parts)


def warnings(trace: Trace) -> list[str]:
    """What must not be overlooked."""
    meta = trace.meta
    found = [meta.model.banner] if meta.model.banner else []
    found += [f"not seen: {text}" for text in meta.unseen]
    found += meta.not_recorded
    found += [f"damaged: {damage.text}" for damage in trace.damage]
    found += [f"missing: {text}" for text in trace.missing]
    return [safe(text, 1000) for text in found]


def _steps(trace: Trace, numbers: Iterable[int]) -> list[str]:
    lines: list[str] = []
    for number in numbers:
        lines += readable(partial(_step, trace, number))
    return lines


def _step(trace: Trace, number: int) -> list[str]:
    told = summary(trace, number)
    lines = [told.sentence]
    lines += [f"  {safe(event)}" for event in told.events]
    step = trace.step(number)
    lines += [f"  {part_text(step)}"] if step.packed else []
    for sequence in range(step.num_sequences):
        which = f"sequence {sequence}: " if step.num_sequences > 1 else ""
        lines.append(
            f"  {which}{_tokens(trace, step, sequence)} → {_next(trace, number, sequence)}"
        )
    for text, members in groupby(told.layers, key=lambda layer: layer.text):
        group = [layer.cache_layer for layer in members]
        lines.append(f"  cache {span(group[0], group[-1])}: {text}")
    checks = [_verdict(trace, number, lane.name) for lane in trace.meta.lanes]
    broken = sum(sum(group.nonfinite) for group in step.sites)
    checks += [f"{broken} values are NaN or Inf"] if broken else []
    checks.append(_worst_check(trace, number))
    return [*lines, f"  {'; '.join(filter(None, checks))}"]


def _verdict(trace: Trace, number: int, lane: str) -> str:
    try:
        return f"{lane}: {worst(trace, number, lane)}"
    except KvtraceError as error:
        return f"{lane}: can't be read ({safe(str(error), 1000)})"


def _tokens(trace: Trace, step: Step, sequence: int) -> str:
    """The last tokens that came in; those that only fill the row up are counted."""
    pairs = zip(step.tokens[sequence], step.positions[sequence], strict=True)
    ids = [one for one, position in pairs if position >= 0]
    filling = len(step.tokens[sequence]) - len(ids)
    shown = [token(trace.token_text(one)) for one in ids[-_TOKENS_SHOWN:]]
    lead = (f"({filling} of padding) " if filling else "") + (
        "… " if len(ids) > _TOKENS_SHOWN else ""
    )
    return lead + " ".join(shown)


def _next(trace: Trace, number: int, sequence: int) -> str:
    """The chosen token and its rivals."""
    found = summary(trace, number, sequence).candidates
    rivals = [
        f"{token(one.text)} {one.probability:.1%}"
        for one in found.ranked
        if not one.chosen and one.probability is not None
    ]
    rivals = rivals[:_RIVALS_SHOWN]
    if found.chosen is None:
        return "not known" if not rivals else f"not known (likeliest: {', '.join(rivals)})"
    share = found.chosen.probability
    chosen = token(found.chosen.text) + ("" if share is None else f" {share:.1%}")
    chosen = f"fed {chosen}" if found.fed else chosen
    return chosen + (f" (rivals: {', '.join(rivals)})" if rivals else "")


def _worst_check(trace: Trace, number: int) -> str:
    """The largest self-check error of a step, relative to its output."""
    found = [
        (error / scale if scale else error, site, error)
        for group in trace.step(number).sites
        for site, error, scale in zip(
            group.sites, group.check_error, group.check_scale, strict=True
        )
        if error is not None
    ]
    if not found:
        return f"self-check: not made while recording; --step {number} makes it"
    relative, site, error = max(found)
    return f"self-check: largest error {error:.1e}, {relative:.1e} of the output, layer {site}"


def _lane(trace: Trace, lane: Lane, numbers: Sequence[int]) -> list[str]:
    first = first_parting(trace, lane.name, numbers)
    most = largest_difference(trace, lane.name, numbers)
    return [
        f"{safe(lane.name)} ({safe(lane.mode)}, {safe(lane.dtype)}, {safe(lane.reference)}): "
        f"{safe(reason_of(lane))}",
        f"  parts first: {'nowhere' if first is None else first.text}",
        f"  largest difference: {'not compared' if most is None else most.text}",
    ]


def _note(trace: Trace, index: int) -> str:
    note = trace.notes[index]
    places = [("step", note.step), ("layer", note.site), ("head", note.head)]
    where = ", ".join(f"{name} {value}" for name, value in places if value is not None)
    return f"{safe(note.kind)}{f' ({where})' if where else ''}: {safe(note.text, 1000)}"


def _so_far(trace: Trace, numbers: Sequence[int]) -> list[str]:
    """Sums over the run, the last step's parts, and the cache."""
    if not numbers:
        return []
    last = numbers[-1]
    total = so_far(history(trace), last)
    times = [_time(total.elapsed_ns), _time(total.lane_ns)]
    cost, memory = step_cost(trace, last), cache_memory(trace, last)
    conventions = {logits: step_cost(trace, last, logits) for logits in Logits}
    about = ", about" if cost.estimated else ""
    rows = [["", "cached", f"without cache{about}", "ratio"]]
    rows.append(
        _pair(units.counted(total.steps, "step"), total.cached_flops, total.recomputed_flops)
    )
    rows.append(["time", *times])
    rows.append(_pair(f"step {last}", cost.cached.flops, cost.recomputed.flops))
    rows += [_pair(f"  {part.title}", part.cached, part.recomputed) for part in cost.parts]
    rows += [
        _pair(f"step {last}, logits: {logits}", one.cached.flops, one.recomputed.flops)
        for logits, one in conventions.items()
        if logits is not Logits.COMPUTED
    ]
    rows.append(["bytes moved", *map(units.byte_size, (cost.cached.moved, cost.recomputed.moved))])
    rows.append(["time", _time(cost.cached.elapsed_ns), _time(cost.recomputed.elapsed_ns)])
    grows = f"one more token adds {units.byte_size(memory.token_bytes)}"
    return [
        *table(rows, right=(1, 2, 3)),
        why(cost),
        f"The cache holds {units.byte_size(cost.cache_bytes)}; {grows}.",
        *_saved(trace, last),
    ]


def _saved(trace: Trace, number: int) -> list[str]:
    """What the cache would hold without what makes it smaller, and with more of that."""
    cases = [
        f"{units.byte_size(one.otherwise_bytes)} "
        f"({units.ratio(one.otherwise_bytes, one.held_bytes)}) {one.what}"
        for one in (*savings(trace, number), *further(trace, number))
    ]
    return [f"It would hold {', '.join(cases)}."] if cases else []


def _pair(name: str, cached: int, recomputed: int) -> list[str]:
    return [name, units.flops(cached), units.flops(recomputed), units.ratio(recomputed, cached)]


def _time(elapsed_ns: int | None) -> str:
    return "not measured" if elapsed_ns is None else units.duration(elapsed_ns)
