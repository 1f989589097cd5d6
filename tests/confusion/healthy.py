"""Healthy models: whatever a check calls them is a false alarm.

The zoo's twins in three dtypes, chunked, padded and in batches; people's own models; built-in
ones; and every causal-LM type of transformers, tiny, in three dtypes.
"""

from __future__ import annotations

from dataclasses import replace

import torch

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
    hub = [f"hub {one} {dtype}" for one in causal_lm_types() for dtype in DTYPES]
    return [*zoo, *own, *(f"built-in {one} float32" for one in ("demo", "demo-gqa")), *hub]


def scored(name: str) -> Outcome:
    """Run one."""
    torch.manual_seed(0)
    family, what, *run, dtype = name.split()
    report = check(_FAMILIES[family](what, getattr(torch, dtype), *run))
    words = report.findings[0].sentence if report.findings else report.reason
    bug = next((one for one in report.findings if one.kind.bug), None)
    heard = called(report) if bug is None else bug.name
    return Outcome(NOTHING, heard, None, name, words)


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


def _hub(model_type: str, dtype: torch.dtype) -> Trace:
    model = tiny_model(model_type, dtype=dtype)
    tokens = torch.randint(3, 90, (1, 9), generator=torch.Generator().manual_seed(1))
    return recorded(model, lambda: _generate(model, tokens))


def _built_in(name: str, dtype: torch.dtype) -> Trace:
    from transformers import AutoModelForCausalLM

    from kvtrace_fixtures import model_directory

    model = AutoModelForCausalLM.from_pretrained(model_directory(name), dtype=dtype).eval()
    tokens = torch.randint(3, 90, (1, 30), generator=torch.Generator().manual_seed(1))
    return recorded(model, lambda: _generate(model, tokens))


@torch.no_grad()
def _generate(model, tokens) -> None:
    model.generate(
        tokens, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0, use_cache=True
    )


_FAMILIES = {"twin": _twin, "custom": _custom, "hub": _hub, "built-in": _built_in}
