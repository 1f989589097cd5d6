"""Healthy models: whatever a check calls them is a false alarm.

The zoo's twins in three dtypes, chunked, padded and in batches; people's own models; built-in
ones; and every causal-LM type of transformers, tiny, in three dtypes, padded, and with beams.

Not every model of transformers computes the same with its cache: an alarm about one of those is
held against a witness that knows nothing of kvtrace, `generate` with and without the cache.
"""

from __future__ import annotations

import torch
from msgspec.structs import replace

from builders.custom_drives import STYLES, UNCACHED, build, ids, through_the_cache
from builders.tiny_models import causal_lm_types, tiny_model
from confusion.score import NOTHING, Outcome, called, recorded
from kvtrace.analysis.checks import check
from kvtrace.trace import Trace
from kvtrace_fixtures.zoo.drive import COURSES, drive
from kvtrace_fixtures.zoo.plant import twin
from kvtrace_fixtures.zoo.table import catalogue
from kvtrace_fixtures.zoo.twins.decoder import Sizes

DTYPES = ("float32", "bfloat16", "float16")
TRUE_DIFFERENCES = ("stretched-with-length", "looks-ahead")


def twins() -> dict[str, str]:
    """Each healthy twin to the name of a bug that is planted in it."""
    found: dict[str, str] = {}
    for bug in catalogue().values():
        if bug.name not in TRUE_DIFFERENCES:
            found.setdefault(bug.twin, bug.name)
    return found


def names() -> list[str]:
    """Of all healthy runs."""
    runs = ("plain", "chunks", "padded", "batch", "long")
    zoo = [f"twin {one} {run} {dtype}" for one in twins() for run in runs for dtype in DTYPES]
    own = [f"custom {style} {dtype}" for style in STYLES for dtype in DTYPES]
    ways = (*(f"plain {dtype}" for dtype in DTYPES), "padded float32", "beams float32")
    hub = [f"hub {one} {way}" for way in ways for one in causal_lm_types()]
    return [*zoo, *own, *(f"built-in {one} float32" for one in ("demo", "demo-gqa")), *hub]


def scored(name: str) -> Outcome:
    """Run one."""
    torch.manual_seed(0)
    family, what, *run, dtype = name.split()
    report = check(_FAMILIES[family](what, getattr(torch, dtype), *run))
    words = report.findings[0].sentence if report.findings else report.reason
    bug = next((one for one in report.findings if one.kind.bug), None)
    heard = called(report) if bug is None else bug.name
    apart = _witness(what, run[0]) if family == "hub" and bug is not None else None
    return Outcome(NOTHING, heard, None, name, words, apart)


def _twin(what: str, dtype: torch.dtype, run: str) -> Trace:
    model = twin(catalogue()[twins()[what]], Sizes()).to(dtype)
    course = COURSES[run]
    if what == "ring:Windowed" and run == "padded":
        course = replace(course, padding=0)  # this twin knows no padding
    return recorded(model, lambda: drive(model, course, run))


def _custom(style: str, dtype: torch.dtype) -> Trace:
    model = build(style).to(dtype)
    prompt = 6 if style in UNCACHED else 9
    return recorded(model, lambda: through_the_cache(style, model, ids(18), prompt))


def _hub(model_type: str, dtype: torch.dtype, run: str) -> Trace:
    model = tiny_model(model_type, dtype=dtype)
    return recorded(model, lambda: _generate(model, **_asked(run)))


def _asked(run: str) -> dict[str, object]:
    """What `generate` is asked for in a run."""
    rows = 2 if run == "padded" else 1
    tokens = torch.randint(3, 90, (rows, 9), generator=torch.Generator().manual_seed(1))
    if run == "beams":
        return {"inputs": tokens, "num_beams": 3}
    if run == "padded":
        seen = torch.ones_like(tokens)
        seen[0, :3] = tokens[0, :3] = 0
        return {"inputs": tokens, "attention_mask": seen}
    return {"inputs": tokens}


def _witness(model_type: str, run: str) -> float:
    """How far logits with and without the cache are apart, over the largest, in float32.

    As long as the same tokens were chosen: later ones are about another text.
    """
    asked = {"return_dict_in_generate": True, "output_logits": True, **_asked(run)}
    model = tiny_model(model_type)
    with_cache, without = (_generate(model, use_cache=use, **asked) for use in (True, False))
    far, prompt = 0.0, asked["inputs"].shape[1]
    for number, (one, other) in enumerate(zip(with_cache.logits, without.logits, strict=True)):
        same = prompt + (number if run != "beams" else 0)
        if not torch.equal(with_cache.sequences[:, :same], without.sequences[:, :same]):
            break
        far = max(far, float((one - other).abs().max() / other.abs().max()))
    return far


def _built_in(name: str, dtype: torch.dtype) -> Trace:
    from transformers import AutoModelForCausalLM

    from kvtrace_fixtures import model_directory

    model = AutoModelForCausalLM.from_pretrained(model_directory(name), dtype=dtype).eval()
    tokens = torch.randint(3, 90, (1, 30), generator=torch.Generator().manual_seed(1))
    return recorded(model, lambda: _generate(model, inputs=tokens))


@torch.no_grad()
def _generate(model, **asked):
    asked = {"do_sample": False, "pad_token_id": 0, "use_cache": True, **asked}
    return model.generate(max_new_tokens=8, min_new_tokens=8, **asked)


_FAMILIES = {"twin": _twin, "custom": _custom, "hub": _hub, "built-in": _built_in}
