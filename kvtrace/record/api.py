"""`kvtrace.record(model, path)`: record whatever runs inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

from msgspec import Struct
from torch import nn

from kvtrace.errors import UsageError
from kvtrace.record.ambient import AmbientRecording
from kvtrace.record.ambient.by_hand import follow_by_hand
from kvtrace.record.ambient.late import LateWriter
from kvtrace.record.ambient.recording import Create
from kvtrace.record.capture.replaced.compiled import as_written
from kvtrace.record.card import card, versions
from kvtrace.record.lanes import LaneOptions
from kvtrace.record.modes import unseen_by_modes
from kvtrace.record.processes.ranks import Share, of_rank, own_path, rank_of
from kvtrace.record.recording import Recording
from kvtrace.record.steps.check import SelfCheck
from kvtrace.record.steps.recorder import Options
from kvtrace.record.steps.texts import Texts
from kvtrace.trace import Meta, ModelCard, Sampling


class Wishes(TypedDict, total=False):
    """The keywords of `record`."""

    recompute: str
    tokenizer: object
    prompt: str | Sequence[int]
    name: str | None
    force: bool
    referee: bool
    keep_rows: bool
    model_card: ModelCard | None
    sampling: Sampling | None
    on_step: Callable[[Any], None] | None


@overload
def record(model: nn.Module, path: str | Path, **wishes: Unpack[Wishes]) -> Recording: ...
@overload
def record(model: str | Path, path: None = None, **wishes: Unpack[Wishes]) -> AmbientRecording: ...
def record(  # noqa: PLR0913 - the public face: one keyword for each thing a caller may say
    model: nn.Module | str | Path,
    path: str | Path | None = None,
    *,
    recompute: str = "once",
    tokenizer: object = None,
    prompt: str | Sequence[int] = "",
    name: str | None = None,
    force: bool = False,
    referee: bool = False,
    keep_rows: bool = False,
    model_card: ModelCard | None = None,
    sampling: Sampling | None = None,
    on_step: Callable[[Any], None] | None = None,
) -> Recording | AmbientRecording:
    """Record what a model's attention consumes, step by step, while the `with` block runs.

    `with kvtrace.record(model, "a.kvt"): model.generate(...)` or any loop of your own.
    Decode steps that are like the one before are written several at a time, at most 100 ms late: a
    process that is killed loses no more than these.

    Args:
        model: What is called inside.
        path: The trace file to write; where several processes share the model's heads, each
            writes its own: `run.kvt` becomes `run.rank0.kvt` (see `Recording.path`).
        recompute: "once", "each" or "off": how the same tokens are computed without a cache.
        tokenizer: Gives texts of ids: has `decode`, or is called with one id.
        prompt: Text of the prompt, for the reader; or its token ids, for the checks.
        name: What to call the model; by default its class.
        force: Replace an existing file.
        referee: Compute the same tokens in a higher precision too.
        keep_rows: Keep the other lanes' rows however large; else up to 256 MiB a pass.
        model_card: All that is said of the model, where the caller knows more than the module.
        sampling: How tokens are chosen, where the caller knows.
        on_step: Told of each step that was written; under "each" once more when the pass beside
            it was.

    Returns:
        A context manager: a `Recording`, or an `AmbientRecording` where no model is given.

    Raises:
        UsageError: An argument is wrong.
    """
    if recompute not in ("once", "each", "off"):
        raise UsageError(f"record: recompute={recompute!r}; expected 'once', 'each' or 'off'")
    lanes = LaneOptions(recompute, referee, keep_rows)
    says = _Says(name, prompt, model_card, sampling, tokenizer, on_step)
    if isinstance(model, str | Path) and path is None:

        def make(found: nn.Module, create: Create) -> tuple[Recording, LateWriter]:
            late = LateWriter(lambda meta: create(recording, meta))
            meta, options = says.of(found)
            recording = Recording(
                found, Path(), meta, options, lanes=lanes, force=force, writer=late
            )
            return recording, late

        return AmbientRecording(Path(model), make, force=force)
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"record: found {type(model).__name__} as the model, expected a torch.nn.Module; "
            "call kvtrace.record(model, path)"
        )
    if path is None:
        raise UsageError("record: no path was given; call kvtrace.record(model, 'name.kvt')")
    model = as_written(model)
    meta, options = says.of(model)
    own = own_path(Path(path), meta.rank)
    recording = Recording(model, own, meta, options, lanes=lanes, force=force)
    recording.beside = follow_by_hand
    return recording


class _Says(Struct, frozen=True):
    """What the caller says of the run."""

    name: str | None
    prompt: str | Sequence[int]
    card: ModelCard | None
    sampling: Sampling | None
    tokenizer: object
    on_step: Callable[[Any], None] | None

    def of(self, model: nn.Module) -> tuple[Meta, Options]:
        """The head of a trace of a model, and what its recorder works with."""
        with unseen_by_modes():
            described = self.card or card(model, self.name)
        text, ids = (self.prompt, ()) if isinstance(self.prompt, str) else ("", tuple(self.prompt))
        meta = Meta(
            model=described,
            sampling=self.sampling or Sampling(driver="caller"),
            versions=versions(),
            prompt=text,
            prompt_ids=ids,
        )
        options = Options(Texts(_text_of(self.tokenizer)), SelfCheck(), self.on_step)
        rank = rank_of(model)
        if rank is None:
            return meta, options
        options.placed = Share(model, rank).placed
        return of_rank(meta, rank), options


def _text_of(tokenizer: object) -> Callable[[int], str] | None:
    """A function from one id to its text."""
    if tokenizer is None:
        return None
    tokenize: Any = tokenizer
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        return lambda token: str(tokenize.decode([token], clean_up_tokenization_spaces=False))
    if hasattr(tokenizer, "decode"):
        return lambda token: str(tokenize.decode(token))
    return lambda token: str(tokenize(token))
