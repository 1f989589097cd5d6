"""A second set of bugs, independent of the zoo: small edits in the source of people's models.

`mutants.toml` names the kind that a check should call each, written down before any was run. A
harmless edit must be called nothing.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from msgspec import Struct
from torch import nn

from builders.custom_drives import STYLES, ids, through_the_cache
from builders.tiny_models import tiny_model
from confusion.score import Outcome, called, recorded
from kvtrace.analysis.checks import check

TOTAL = 20


class Mutant(Struct, frozen=True):
    """An edit.

    Attributes:
        name: What is edited, in a few words.
        where: A style of `kvtrace_fixtures.custom`, or "type module:Class.function" for a type
            of transformers; type+static takes a static cache.
        kind: What it should be called.
        edits: Pairs of (old, new) source; each old text must be there.
        ends: Token counts after each forward over the prompt.
        padding: Hidden tokens at the left of the second sequence; 0: one sequence.
        beams: Beams to search with; 0: none.
    """

    name: str
    where: str
    kind: str
    edits: tuple[tuple[str, str], ...]
    ends: tuple[int, ...] = (9,)
    padding: int = 0
    beams: int = 0

    @property
    def custom(self) -> bool:
        """Whether it is one of our own models in other people's styles."""
        return self.where in STYLES

    def edited(self, source: str) -> str:
        """Source with the edits.

        Raises:
            LookupError: An old text is not there.
        """
        for old, new in self.edits:
            if old not in source:
                raise LookupError(f"{self.name}: {old!r} is not in {self.where}")
            source = source.replace(old, new)
        return source


def mutants() -> list[Mutant]:
    """All of them."""
    rows = tomllib.loads((Path(__file__).parent / "mutants.toml").read_text())["mutant"]
    return [
        Mutant(
            **{
                **row,
                "edits": tuple((edit["old"], edit["new"]) for edit in row["edits"]),
                "ends": tuple(row.get("ends", (9,))),
            }
        )
        for row in rows
    ]


def scored(mutant: Mutant) -> Outcome:
    """Run a mutant."""
    torch.manual_seed(0)
    trace = _custom(mutant) if mutant.custom else _hub(mutant)
    report = check(trace)
    words = report.findings[0].sentence if report.findings else report.reason
    return Outcome(mutant.kind, called(report), None, f"{mutant.where}: {mutant.name}", words)


def _custom(mutant: Mutant):
    module = importlib.import_module(f"kvtrace_fixtures.custom.{mutant.where}")
    model = _module(module, mutant).build()
    tokens = ids(TOTAL, seed=3)
    return recorded(
        model,
        lambda: through_the_cache(mutant.where, model, tokens, mutant.ends[0], ends=mutant.ends),
    )


def _module(module: ModuleType, mutant: Mutant) -> ModuleType:
    """The module from edited source."""
    name = f"{module.__name__}_mutant"
    made = ModuleType(name)
    made.__file__ = module.__file__
    sys.modules[name] = made  # dataclasses look their module up
    exec(compile(mutant.edited(inspect.getsource(module)), name, "exec"), made.__dict__)
    return made


def _hub(mutant: Mutant):
    kind, place = mutant.where.split()
    kind, _, cache = kind.partition("+")
    model = tiny_model(kind)
    if kind == "llama":
        model.model.layers[0].self_attn.__class__._cos = lambda _, n: model.model.rotary_emb(
            torch.zeros(1, 1), n[None]
        )
    with _edited(place, mutant):
        return recorded(model, lambda: _feed(model, mutant, cache))


@contextmanager
def _edited(place: str, mutant: Mutant) -> Iterator[None]:
    """A method of a class of transformers from edited source, while inside."""
    module_name, _, path = place.partition(":")
    owner_name, _, name = path.partition(".")
    module = importlib.import_module(module_name)
    owner = getattr(module, owner_name)
    before = owner.__dict__[name]
    source = mutant.edited(inspect.getsource(inspect.unwrap(before)))
    found: dict[str, object] = {}
    space = dict(module.__dict__)
    exec(_as_method(source, owner_name), space, found)
    setattr(owner, name, found[owner_name].__dict__[name])
    try:
        yield
    finally:
        setattr(owner, name, before)


def _as_method(source: str, owner: str) -> str:
    bare = textwrap.dedent(source)
    body = textwrap.indent(bare[bare.index("def ") :], "    ")
    return f"from __future__ import annotations\nclass {owner}:\n{body}"


@torch.no_grad()
def _feed(model: nn.Module, mutant: Mutant, cache: str) -> None:
    rows = 2 if mutant.padding else 1
    tokens = torch.randint(3, 150, (rows, TOTAL), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(tokens)
    if mutant.padding:
        mask[-1, : mutant.padding] = 0
    if mutant.beams:
        prompt = tokens[:, : mutant.ends[0]]
        model.generate(
            prompt, num_beams=mutant.beams, max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        return
    start, past = 0, _cache(model, cache)
    for end in (*mutant.ends, *range(mutant.ends[-1] + 1, TOTAL + 1)):
        given = {"attention_mask": mask[:, :end]} if mutant.padding else {}
        out = model(tokens[:, start:end], past_key_values=past, use_cache=True, **given)
        past, start = out.past_key_values, end


def _cache(model: nn.Module, cache: str):
    if cache != "static":
        return None
    from transformers import StaticCache

    return StaticCache(config=model.config, max_cache_len=32)
