"""Each bug of the zoo is named, at the right first place; each healthy twin gives nothing."""

import pytest
import torch
from msgspec.structs import replace

import kvtrace
from kvtrace.analysis.checks import EQUAL, KINDS, check
from kvtrace.files import open_trace
from kvtrace_fixtures.zoo.drive import COURSES, drive, warm
from kvtrace_fixtures.zoo.plant import by_layer, class_of, planted, twin
from kvtrace_fixtures.zoo.table import catalogue
from kvtrace_fixtures.zoo.twins.decoder import Sizes

BUGS = catalogue()

# (step, layer) where it is not the first decode step of the layer it is planted in
PLACES = {
    "allocated-per-head": (0, 0),
    "never-reset": (0, 1),
    "cached-in-half": (0, 1),
    "cached-in-eight": (0, 1),
    "learned-clamped": (4, 0),
    "gelu-in-decode": (1, 2),
    "layer-index-halved": (0, 1),
    "rounded-to-bfloat": (0, 0),
    "beams-not-reordered": (2, 0),
    "looks-ahead": (1, 0),
    "stretched-with-length": (0, 0),
}
EVERY_LAYER = ("allocated-per-head",)


def recorded(path, model, run, course=None):
    course = course or COURSES[run]
    if run == "again":
        warm(model, course)
    recompute = "each" if run == "each" else "once"
    with kvtrace.record(model, path, recompute=recompute, referee=True, keep_rows=True):
        drive(model, course, run)
    return open_trace(path)


@pytest.mark.filterwarnings("ignore")  # transformers advises on runs that are wrong on purpose
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_called_by_its_name_where_it_begins(tmp_path, name):
    bug = BUGS[name]
    single = by_layer(bug) and name not in EVERY_LAYER
    trace = recorded(tmp_path / "a.kvt", planted(bug, layers=[1] if single else None), bug.run)
    first = check(trace).findings[0]
    found = first.name, first.step, trace.site(first.layer).layer
    place = PLACES.get(name, (1, 1 if single else 0))
    assert found == (bug.kind, *place)


def twins():
    chosen = {}
    for bug in BUGS.values():
        if bug.module:
            chosen.setdefault(bug.twin, bug)
    return chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", twins())
def test_a_healthy_twin_gives_nothing_in_chunks(tmp_path, name, dtype):
    if (name, dtype) == ("biased:Biased", torch.bfloat16):
        dtype = torch.float16  # in bfloat16 its scores round too far for its attention to be seen
    model = twin(twins()[name], Sizes()).to(dtype)
    found = check(recorded(tmp_path / "a.kvt", model, "chunks"))
    assert (found.verdict, found.findings) == (EQUAL, ())


@pytest.mark.parametrize("run", ["padded", "batch", "long"])
@pytest.mark.parametrize("name", twins())
def test_a_healthy_twin_gives_nothing_padded_batched_and_beyond_its_window(tmp_path, name, run):
    model = twin(twins()[name], Sizes())
    course = COURSES[run]
    if name == "ring:Windowed":
        course = replace(course, padding=0)  # it knows no padding
    found = check(recorded(tmp_path / "a.kvt", model, run, course))
    assert (found.verdict, found.findings) == (EQUAL, ())


def test_every_kind_of_divergence_is_planted_at_least_once():
    unplanted = set(KINDS) - {bug.kind for bug in BUGS.values()}
    # a tie needs a router or a top-k that is decided by the last bit; unknown is no bug of its own,
    # nor is a choice of rows
    assert unplanted == {"EVICTED-BY-CHOICE", "TIE", "UNKNOWN"}


def test_every_bug_is_a_few_lines_on_a_healthy_twin():
    assert len(BUGS) >= 40
    assert len({bug.twin for bug in BUGS.values()}) >= 6
    for bug in BUGS.values():
        assert bug.story.endswith(".")
        if bug.module:
            assert class_of(bug).__name__ == bug.class_name


def test_two_causes_in_one_model_are_told_in_causal_order(tmp_path):
    model = planted(BUGS["keys-lag"], layers=[0])
    model.layers[2].attention.__class__ = class_of(BUGS["cropped-early"])
    found = check(recorded(tmp_path / "a.kvt", model, "plain")).findings
    assert [(one.name, one.layer) for one in found] == [
        ("POSITION-ROPE-K", 0),
        ("EVICTED-EARLY", 2),
    ]


def test_one_cause_in_every_layer_is_told_once(tmp_path):
    for name in ("square-mask", "heads-repeated", "cropped-early"):
        trace = recorded(tmp_path / f"{name}.kvt", planted(BUGS[name]), BUGS[name].run)
        assert [one.name for one in check(trace).findings] == [BUGS[name].kind]
