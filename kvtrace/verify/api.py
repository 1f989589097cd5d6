"""`kvtrace.check` of a model, and `kvtrace.assert_cache_consistent`: is my cache right?"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec.structs import replace
from torch import nn

from kvtrace.analysis.checks.noise import Noise
from kvtrace.analysis.checks.report import DIVERGED, UNCHECKED, Report, Trial, together
from kvtrace.analysis.checks.verdict import checked
from kvtrace.analysis.checks.whole_run.leftover import beyond
from kvtrace.analysis.checks.whole_run.one_at_a_time import excused
from kvtrace.errors import KvtraceError, RecordError, UsageError
from kvtrace.files import open_trace
from kvtrace.models.scripts.vocabulary import positions_of, vocabulary_of
from kvtrace.paths import OURS, line_of
from kvtrace.record import record
from kvtrace.record.decode import Limits, decode
from kvtrace.record.driving import Driven, Wish, afresh, choose_drive
from kvtrace.record.driving.adapter import beside_class
from kvtrace.text import safe
from kvtrace.trace import Sampling, Trace
from kvtrace.verify.plans import Plan, plans
from kvtrace.verify.prompts import Prompts, token_ids
from kvtrace.verify.trials import Recorded, tokens_of, tried
from kvtrace.verify.ways import WAYS, named


def check(
    model: nn.Module,
    prompts: Prompts | None = None,
    *,
    tokenizer: object = None,
    new_tokens: int = 16,
    ways: Sequence[str] | None = None,
    run: Callable[[], object] | None = None,
    keep: str | Path | None = None,
) -> Report:
    """`kvtrace.check` of a model; see there for its arguments.

    Raises:
        UsageError: An argument is wrong.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"check: found {type(model).__name__}, expected a torch.nn.Module or a trace"
        )
    if (run is None) == (prompts is None):
        raise UsageError("check: give prompts, or run=a function that drives the model")
    unknown = [way for way in ways or () if way not in WAYS]
    if unknown:
        raise UsageError(f"check: unknown way {unknown[0]!r}; there are {', '.join(WAYS)}")
    if keep is not None:
        Path(keep).mkdir(parents=True, exist_ok=True)
        return _Check(model, Path(keep), tokenizer).report(prompts, run, new_tokens, ways)
    with TemporaryDirectory(prefix="kvtrace-") as folder:
        found = _Check(model, Path(folder), tokenizer).report(prompts, run, new_tokens, ways)
    return _without_traces(found)


def assert_cache_consistent(
    model: nn.Module,
    prompts: Prompts | None = None,
    *,
    tokenizer: object = None,
    new_tokens: int = 16,
    ways: Sequence[str] | None = None,
    run: Callable[[], object] | None = None,
    keep: str | Path | None = None,
) -> None:
    """`check`, for tests; the arguments are the same.

    Raises:
        AssertionError: The lanes diverge; the message is the report.
        RecordError: It could not be checked, which is no pass.
        UsageError: An argument is wrong.
    """
    __tracebackhide__ = True
    try:
        report = check(
            model,
            prompts,
            tokenizer=tokenizer,
            new_tokens=new_tokens,
            ways=ways,
            run=run,
            keep=keep,
        )
    except UsageError as error:
        raise error.with_traceback(None) from None  # of a test, its own lines are shown alone
    if report.verdict == DIVERGED:
        raise AssertionError(str(report))
    if report.verdict == UNCHECKED:
        raise RecordError(str(report))


@dataclass(slots=True)
class _Check:
    """One call of `check`.

    Attributes:
        model: To drive.
        folder: For the traces.
        tokenizer: The caller's, may be None.
        first: What was recorded first.
        driven: How the model was called first.
    """

    model: nn.Module
    folder: Path
    tokenizer: object
    first: Trace | None = None
    driven: Driven | None = None

    def report(
        self,
        prompts: Prompts | None,
        run: Callable[[], object] | None,
        new_tokens: int,
        ways: Sequence[str] | None,
    ) -> Report:
        if run is not None:
            trial = self._main(run, "run", self.model)
            seen = self._outside(run) if self.first is not None and not len(self.first) else []
            return together(seen or [trial])
        given = token_ids([] if prompts is None else prompts, self.tokenizer)
        trials = [
            self._decoded(ids, new_tokens, f"decode{at or ''}") for at, ids in enumerate(given)
        ]
        limits, nothing = trials[0].report.limits, trials[0].report.keeps_nothing
        if (limits is not None or nothing) and self.first is not None:
            tokens, others = tokens_of(self.first), given if len(given) > 1 else ()
            alone = self.first.step(self.first.numbers[0]).new if nothing else 0
            planned = plans(self.model, tokens, self._start, others=others, ways=ways, alone=alone)
            trials += self._others(limits, beyond(self.first), planned)
        return together(trials)

    def _start(self, ids: Sequence[int], new_tokens: int) -> Driven:
        """How the model is called; begins anew each time."""
        if self.driven is not None:
            return afresh(self.driven, self.model, ids, new_tokens)
        theirs = beside_class(self.model)
        wish = Wish(ids, new_tokens, *self._sizes(), functions=theirs)
        self.driven = choose_drive(self.model, wish)
        return self.driven

    def _sizes(self) -> tuple[int, int]:
        """Positions and tokens that the model knows; 0 when unknown."""
        return positions_of(self.model), vocabulary_of(self.model)

    def _unknown(self, ids: Sequence[int]) -> str:
        """That a model which could not be called may not know a token, in a sentence, or empty."""
        known = self._sizes()[1]
        other = next((token for token in ids if known and not 0 <= token < known), None)
        if other is None:
            return ""
        return (
            f"the prompt's id {other} is outside the model's vocabulary of {known}; use the "
            "tokenizer that the model was trained with"
        )

    def _decoded(self, ids: Sequence[int], new_tokens: int, name: str) -> Trial:
        """One prompt, decoded up to the model's context."""
        try:
            driven = self._start(ids, new_tokens)
        except RecordError as error:
            return Trial(name, Report(UNCHECKED, reason=self._unknown(ids) or str(error)))
        limits = Limits(new_tokens, context_length=self._sizes()[0])
        trial = self._main(
            lambda: decode(driven.model, driven.prompt, drive=driven.drive, limits=limits),
            name,
            driven.model,
            Sampling(max_new_tokens=new_tokens),
        )
        if trial.report.verdict == UNCHECKED and (unknown := self._unknown(ids)):
            return replace(trial, report=replace(trial.report, reason=unknown))
        return trial

    def _main(
        self,
        drive: Callable[[], object],
        name: str,
        model: nn.Module,
        sampling: Sampling | None = None,
    ) -> Trial:
        """A run with a referee, recorded and judged; `sampling` is that of a loop of ours."""
        path = self.folder / f"{name}.kvt"
        try:
            with record(
                model,
                path,
                tokenizer=self.tokenizer,
                referee=True,
                keep_rows=True,
                force=True,
                sampling=sampling,
            ):
                drive()
        except Exception as error:
            if isinstance(error, UsageError):
                raise
            # the model's own, or one of ours that is no verdict either
            return Trial(name, Report(UNCHECKED, reason=_blamed(error)))
        trace = open_trace(path)
        self.first = self.first or trace
        return checked(trace, str(path))

    def _outside(self, run: Callable[[], object]) -> list[Trial]:
        """Whatever attends in a run that does not call the model itself: its parts, say."""
        try:
            with record(self.folder / "parts.kvt", referee=True, keep_rows=True, force=True):
                run()
        except Exception as error:
            return [Trial("run", Report(UNCHECKED, reason=_blamed(error)))]
        paths = sorted(self.folder.glob("parts*.kvt"))
        return [checked(open_trace(path), str(path)) for path in paths]

    def _others(
        self, limits: Noise | None, fresh: Mapping[int, int], planned: Sequence[Plan]
    ) -> list[Trial]:
        """What the other ways say, judged by what the first run told of rounding."""
        found = tried(
            planned,
            lambda way: self.folder / f"{way}.kvt",
            tokenizer=self.tokenizer,
            fresh=fresh,
        )
        return [
            _judged(one, limits, fresh if one.way in ("again", "own") else None) for one in found
        ]


def _judged(one: Recorded, limits: Noise | None, fresh: Mapping[int, int] | None) -> Trial:
    if one.path is None:
        return Trial(one.title, Report(UNCHECKED, reason=one.trouble), essential=False)
    trace = open_trace(one.path)
    trial = checked(trace, str(one.path), at_least=limits, fresh=fresh)
    report = excused(trace, trial.report) if one.presumed else trial.report
    return replace(trial, name=named(one.way, trial.name), report=report, essential=False)


def _blamed(error: Exception) -> str:
    """What went wrong, and where in code that is not ours."""
    if isinstance(error, KvtraceError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    files = [frame for frame in frames if not frame.filename.startswith("<")]
    theirs = [
        frame
        for frame in files
        if OURS not in Path(frame.filename).parents and "torch" not in Path(frame.filename).parts
    ]
    own = [frame for frame in theirs if "site-packages" not in frame.filename] or theirs
    where = f"{line_of(own[-1])}: " if own else ""
    return safe(f"{where}{type(error).__name__}: {error}", 500)


def _without_traces(report: Report) -> Report:
    """The traces are gone: nothing points at them any more."""
    trials = [replace(one, trace="") for one in report.trials]
    gone = () if report.ok else ("the traces are gone; keep='some folder' keeps them",)
    return replace(report, trials=tuple(trials), caveats=(*report.caveats, *gone))
