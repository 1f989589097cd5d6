"""One type of model, recorded and held against what it really did."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass, field
from time import perf_counter

import torch

from builders.device import DEVICE
from builders.recorded import caches_disagree, greatest_error, record
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks import check
from sweep.softmaxes import attending

PROMPT, NEW = 11, 6
TOLERANCE = 1e-5


@dataclass
class Row:
    """What is known of one type.

    Attributes:
        type: Name in `MODEL_FOR_CAUSAL_LM_MAPPING`.
        built: Whether a tiny model of it could be built.
        attentions: Attentions in all steps, counted without kvtrace.
        seen: Those of them that the trace has.
        levels: What saw them: 1 interface, 2 SDPA, 3 data flow.
        caches: Kinds of the cache layers.
        steps: Forwards recorded.
        identical: Tokens and logits are those of the model alone, bit for bit.
        error: Largest relative error of softmax(...)·v from the trace against the output in it.
        rows_equal: Cache layers and sequences held against the live cache, all equal; None: one
            was not.
        lane: Largest relative difference of the recomputed lane; None: not compared.
        says: Sentences of the trace: what was not seen or not recorded.
        fault: What went wrong, if anything did.
        seconds: Time this took.
    """

    type: str
    built: bool = False
    attentions: int = 0
    seen: int = 0
    levels: list[int] = field(default_factory=list)
    caches: list[str] = field(default_factory=list)
    steps: int = 0
    identical: bool = False
    error: float | None = None
    rows_equal: int | None = 0
    lane: float | None = None
    says: list[str] = field(default_factory=list)
    fault: str = ""
    seconds: float = 0.0

    @property
    def traced(self) -> bool:
        """Completely: every attention, every step, every row, and nothing was changed by it."""
        whole = 0 < self.attentions == self.seen and self.steps > 0 and not self.fault
        proved = self.error is not None and self.error <= TOLERANCE
        return whole and proved and self.identical and self.rows_equal is not None


def examine(model_type, folder):
    """Build, run, record, verify.

    Args:
        model_type: One of `causal_lm_types()`.
        folder: For the trace.
    """
    start = perf_counter()
    row = Row(model_type)
    try:
        model = tiny_model(model_type)
    except Exception as error:
        row.fault = _said(error)
        return row
    row.built = True
    try:
        _examine(row, model, folder / f"{model_type}.kvt")
    except Exception as error:
        row.fault = _said(error)
    row.seconds = round(perf_counter() - start, 1)
    return row


def _examine(row, model, path):
    run = _way(model)
    tokens, logits = run(model)
    expected = attending(
        model, lambda count: model(_prompt(model, count), **_plain(model)), lambda: run(model)
    )
    row.attentions = int(sum(expected.values()))
    trace, held, found = record(model, lambda: run(model), path, recompute="once", force=True)
    row.steps = len(trace)
    row.identical = torch.equal(found[0], tokens) and _same(found[1], logits)
    row.levels = sorted({site.level for site in trace.meta.sites})
    row.caches = sorted({layer.kind for layer in trace.meta.cache_layers})
    row.says = [*trace.meta.unseen, *trace.meta.not_recorded]
    row.says += [note.text for note in trace.notes if note.kind != "bookmark"]
    row.seen = _seen(trace, expected)
    if trace.meta.sites:
        row.error = greatest_error(trace)
        row.rows_equal = _rows_equal(trace, held)
    row.lane = _lane(trace)
    row.says += [f"{one.name}: {one.evidence}" for one in _found(trace) if one.name != "UNKNOWN"]


def _seen(trace, expected):
    """How many of the expected attentions are in the trace; more than there are, if they are."""
    sites = [trace.site(site).module for step in trace for one in step.sites for site in one.sites]
    found = Counter(sites)
    missing = sum(max(0, count - _near(found, path)) for path, count in expected.items())
    surplus = max(0, len(sites) - int(sum(expected.values())))
    return int(sum(expected.values()) - missing + surplus)


def _near(found, path):
    """Calls of a module, or of those around and inside it."""
    own = found.get(path, 0)
    if own:
        return own
    return sum(
        count
        for other, count in found.items()
        if path.startswith(f"{other}.") or other.startswith(f"{path}.")
    )


def _rows_equal(trace, held):
    compared, wrong = caches_disagree(trace, held)
    return None if wrong else compared


def _found(trace):
    """What the checks find, each kind once, beyond what a note says already."""
    told = {note.text.partition(":")[0] for note in trace.notes}
    findings = {one.name: one for one in check(trace).findings if one.name not in told}
    return list(findings.values())


def _lane(trace):
    if trace.meta.lane("recomputed") is None:
        return None
    found = [trace.compared(number, "recomputed") for number in trace.numbers]
    ratios = [one.relative for one in found if one is not None]
    finite = [ratio[ratio == ratio] for ratio in ratios]
    return max((float(one.max()) for one in finite if one.size), default=None)


def _same(found, expected):
    """Bit for bit; NaN of the same bits are the same."""
    return len(found) == len(expected) and all(
        one.shape == other.shape and torch.equal(one.view(torch.int32), other.view(torch.int32))
        for one, other in zip(found, expected, strict=True)
    )


def _way(model):
    """How this model generates: with its cache, else as it can."""
    reasons = []
    for way in (_generate, _loop, _uncached):
        try:
            torch.manual_seed(0)
            with torch.no_grad():
                way(model)
        except Exception as error:
            reasons.append(_said(error))
            continue
        return _seeded(way)
    raise RuntimeError("; ".join(dict.fromkeys(reasons)))


def _seeded(way):
    def run(model):
        torch.manual_seed(0)
        with torch.no_grad():
            return way(model)

    return run


def _generate(model):
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    out = model.generate(
        _prompt(model),
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences, list(out.logits)


def _loop(model):
    ids, cache, logits = _prompt(model), None, []
    whole = ids
    for _ in range(NEW):
        out = model(ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        if cache is None:
            raise ValueError("it returned no cache")
        logits.append(out.logits[:, -1])
        ids = logits[-1].argmax(-1, keepdim=True)
        whole = torch.cat([whole, ids], dim=1)
    return whole, logits


def _uncached(model):
    whole, logits = _prompt(model), []
    for _ in range(NEW):
        out = model(whole, **_plain(model))
        logits.append(out.logits[:, -1])
        whole = torch.cat([whole, logits[-1].argmax(-1, keepdim=True)], dim=1)
    return whole, logits


def _plain(model):
    return (
        {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    )


def _prompt(model, count=PROMPT):
    generator = torch.Generator().manual_seed(0)
    # music has a token of every codebook at each position
    rows = getattr(model.config, "num_codebooks", None) or 1
    return torch.randint(3, 90, (rows, count), generator=generator).to(DEVICE)


def _said(error):
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:200]
