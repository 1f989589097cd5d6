"""`kvtrace check`: rounding or bug, where it starts, and which bug it is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from kvtrace.cli.shared import options, outputs
from kvtrace.cli.shared.grammar import Verb
from kvtrace.cli.shared.is_trace import is_trace
from kvtrace.errors import UsageError
from kvtrace.paths import is_file, is_folder
from kvtrace.verify.ways import WAYS, beside

if TYPE_CHECKING:
    from kvtrace.analysis.checks.report import Report
    from kvtrace.cli.check.verdicts import Teller

_UNASKED_TOKENS = 16


def run(values: argparse.Namespace) -> int:
    """Check; the exit code says the verdict."""
    from kvtrace.cli.check.verdicts import Teller, write_junit

    how = next((name for name in ("json", "quiet", "verbose") if getattr(values, name)), "text")
    teller = Teller(how)
    if (script := _script(values)) is not None:
        report = _of_script(script, values, teller)
    else:
        values.words = [*values.words, *values.after]
        traces = _traces(values.words)
        report = _of_traces(traces, teller) if traces else _of_model(values, teller)
    teller.end(report)
    if values.junit is not None:
        write_junit(report, values.junit, f"kvtrace check {' '.join(values.words)}")
    return report.exit_code


# -- traces --------------------------------------------------------------------------------


def _traces(words: list[str]) -> list[Path]:
    """Words that are traces; one that is makes all of them so."""
    named = [Path(word) for word in words if _is_trace(word)]
    if named and len(named) < len(words):
        other = next(word for word in words if not _is_trace(word))
        raise UsageError(f"{other!r} stands beside a trace; check traces, or a model and a prompt")
    return named


def _is_trace(word: str) -> bool:
    """Whether it names a trace, or a folder with those of ranks and no model."""
    if not word:
        return False
    path = Path(word)
    if word.endswith(".kvt") or is_trace(path):
        return True
    return is_folder(path) and not (path / "config.json").exists() and any(path.glob("*.kvt"))


def _of_traces(paths: list[Path], teller: Teller) -> Report:
    """Traces as they are."""
    from kvtrace.analysis.checks.report import together
    from kvtrace.cli.check.judge import look

    return together([look(path, teller, stored=True) for path in paths])


# -- a script ------------------------------------------------------------------------------


def _script(values: argparse.Namespace) -> Path | None:
    """A file of Python alone, or with arguments behind `--`: it is run; with a prompt, a model."""
    words: list[str] = values.words
    alone = len(words) == 1 and words[0].endswith(".py") and values.prompt_file is None
    return Path(words[0]) if alone and is_file(Path(words[0])) else None


def _of_script(script: Path, values: argparse.Namespace, teller: Teller) -> Report:
    """Run it untouched, and judge every trace that it left."""
    from kvtrace.analysis.checks.report import UNCHECKED, Report, Trial, together
    from kvtrace.cli.check.judge import look
    from kvtrace.cli.check.script import recorded

    output = outputs.temporary(script.name) if values.output is None else values.output
    outputs.chosen(output, force=values.force)
    paths, ended = recorded(script, values.after, output, values)
    trials = [look(path, teller) for path in paths]
    if any(one.report.verdict != UNCHECKED for one in trials):
        # a model that was called once only, say, has no cache to check, and spoils nothing
        trials = [replace(one, essential=one.report.verdict != UNCHECKED) for one in trials]
    if not trials:
        reason = f"{script.name} left no trace; where it builds a model, give a prompt, too"
        trials = [Trial("", Report(UNCHECKED, reason=reason))]
    report = together(trials)
    if ended:
        report = replace(report, caveats=(*report.caveats, f"{script.name}{ended}"))
    return report if values.output is not None else _tidied(report, _in(output.parent, paths))


def _in(folder: Path, paths: list[Path]) -> set[Path]:
    return {path for path in paths if path.parent == folder}


# -- a model -------------------------------------------------------------------------------


def _of_model(values: argparse.Namespace, teller: Teller) -> Report:
    """Record the model in every way, and judge each as soon as it is recorded."""
    from kvtrace.cli.check.judge import Judge

    model, prompt = options.model_and_prompt(values, verb="check")
    if values.recompute == "off":
        raise UsageError("--recompute off leaves nothing to hold the cache against")
    ways = _ways(values.ways)
    output = outputs.temporary(model) if values.output is None else values.output
    for path in (output, *(beside(output, way) for way in ways)):
        outputs.chosen(path, force=values.force)
    request = replace(
        options.request(values, model, prompt, output),
        unasked_tokens=_UNASKED_TOKENS,
        referee=True,
        keep_rows=True,
        ways=(",".join(ways) or "none") if values.ways else "all",
    )
    report = Judge(teller).report(request, debug=values.debug)
    if values.output is not None:
        return report
    return _tidied(report, {output, *(beside(output, way) for way in ways)})


def _ways(text: str) -> Sequence[str]:
    """The further ways that were asked for.

    Raises:
        UsageError: One is unknown.
    """
    if text == "none":
        return ()
    asked = [way.strip() for way in text.split(",")] if text else list(WAYS)
    unknown = next((way for way in asked if way not in WAYS), None)
    if unknown is not None:
        raise UsageError(f"--ways: {unknown!r} is unknown; there are {', '.join(WAYS)}, or none")
    return [way for way in WAYS if way in asked]


def _tidied(report: Report, ours: set[Path]) -> Report:
    """Without those of our traces that nobody needs to look at."""
    trials = []
    for one in report.trials:
        keep = not one.report.ok or Path(one.trace) not in ours
        if not keep and one.trace:
            Path(one.trace).unlink(missing_ok=True)
        trials.append(one if keep else replace(one, trace=""))
    return replace(report, trials=tuple(trials))


def _arguments(parser: argparse.ArgumentParser) -> None:
    options.add(parser, unasked_tokens=_UNASKED_TOKENS)
    parser.add_argument(
        "--ways",
        metavar="A,B",
        default="",
        help=f"what to try after decoding the prompt: {', '.join(WAYS)}, or none; default: all",
    )
    told = parser.add_argument_group("the verdict")
    one = told.add_mutually_exclusive_group()
    one.add_argument("--json", action="store_true", help="as JSON, nothing rounded")
    one.add_argument("-q", "--quiet", action="store_true", help="one line")
    one.add_argument("-v", "--verbose", action="store_true", help="every finding of every run")
    told.add_argument(
        "--junit", metavar="FILE", type=outputs.report, help="write JUnit XML there too"
    )


def _divided(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What stands behind `--` is the script's."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


VERB = Verb(
    name="check",
    usage="MODEL [PROMPT] | TRACE... | SCRIPT.py [-- ARGS]  [-n N] [--ways A,B] [options]",
    summary="Rounding or bug? Compare what the cache gave with a forward without it, and name the "
    "difference.\n\nA model is driven in the ways in which caches break: a decode, another prompt "
    "after it, the prompt\nin chunks, a batch, beams, the loops that your own code generates with. "
    "A trace is judged as\nit is, without torch; a script is run untouched, and every trace that "
    "it leaves is judged.\n\n"
    f"{options.MODEL_HELP}\n\n"
    "Exit code 0: equal within rounding. 1: diverged. 3: could not check. Traces of what diverged\n"
    "are kept; with -o all of them.",
    examples=(
        ('kvtrace check gpt2 "hello"', "16 tokens, then the other ways"),
        ("kvtrace check demo -n 64 --ways none -o a.kvt", "one long decode; keep its trace"),
        ('kvtrace check my.py:make "hi" --junit a.xml', "your own model, for a CI"),
        ("kvtrace check sample.py -- --start hello", "whatever attends in a script"),
        ("kvtrace check a.kvt b.kvt --json", "recorded runs, for programs"),
    ),
    arguments=_arguments,
    run=run,
    divided=_divided,
)
