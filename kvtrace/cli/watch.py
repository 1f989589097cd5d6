"""`kvtrace MODEL PROMPT`: record in a process of its own, and watch while it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kvtrace.cli.shared import options, outputs, terminal
from kvtrace.cli.shared.grammar import Verb
from kvtrace.cli.shared.is_trace import is_trace
from kvtrace.live.messages import Request
from kvtrace.paths import shown
from kvtrace.text import safe

if TYPE_CHECKING:
    from kvtrace.cli.show.pick import Place


def run(values: argparse.Namespace) -> int:
    """Record and show; without a terminal, record and print the summary."""
    if trace := _trace_meant(values):
        from kvtrace.cli.open import show_trace

        return show_trace(trace, mouse=not values.no_mouse)
    model, prompt = options.model_and_prompt(values, default_model="demo")
    output = (
        outputs.temporary(model)
        if values.output is None
        else outputs.chosen(values.output, force=values.force)
    )
    values.recompute = values.recompute or _recompute(model)
    request = options.request(values, model, prompt, output)
    terminal.take_input_back()
    if not terminal.can_draw():
        return _print_summary(request, debug=values.debug)
    code = _watch(request, at=_finder(model, prompt), mouse=not values.no_mouse)
    if values.output is None and output.exists():
        print(
            f"recorded in {safe(shown(output))}, where the {outputs.KEPT} newest runs are kept\n"
            f"open it again: kvtrace open {safe(shown(output))}"
        )
    return code


def _trace_meant(values: argparse.Namespace) -> Path | None:
    """A single word that is a trace file: people open files by naming them."""
    words: list[str] = values.words
    if len(words) == 1 and (words[0].endswith(".kvt") or is_trace(Path(words[0]))):
        return Path(words[0])
    return None


def _recompute(model: str) -> str:
    """The built-in models are for learning: small enough to time both lanes at every step."""
    from kvtrace_fixtures import BUILT_IN

    return "each" if model in BUILT_IN else "once"


def _finder(model: str, prompt: str | None) -> Place | None:
    """Where a built-in model looks its story up; None: from the newest step, as any other."""
    from kvtrace.cli.show.pick import Place
    from kvtrace_fixtures import BUILT_IN

    if prompt is not None or model not in BUILT_IN:
        return None
    layer, head = BUILT_IN[model].finder
    return Place(0, layer, head)


def _watch(request: Request, *, at: Place | None, mouse: bool) -> int:
    from kvtrace.cli.shared.follow import error_of
    from kvtrace.cli.shared.live_run import SessionRun
    from kvtrace.cli.shared.signals import as_exceptions
    from kvtrace.live.session import Session
    from kvtrace_tui.app import run as run_screen

    with as_exceptions(), Session(request) as session:
        code = run_screen(Path(request.output), live=SessionRun(session), at=at, mouse=mouse)
        session.close()
        if session.failure is not None and not code:
            raise error_of(session.failure)
    return code


def _print_summary(request: Request, *, debug: bool) -> int:
    from kvtrace.cli.shared.follow import follow
    from kvtrace.cli.show import exit_code, text
    from kvtrace.files import open_trace

    ending = follow(request, debug=debug)
    if not ending.path:
        return 0
    trace = open_trace(Path(ending.path))
    print("\n".join(text.whole(trace, list(trace.numbers))))
    print(f"\nThe trace is {safe(shown(Path(ending.path)))}")
    return exit_code(trace)


def _arguments(parser: argparse.ArgumentParser) -> None:
    options.add(parser)
    parser.set_defaults(recompute=None)
    screen = parser.add_argument_group("the screen")
    screen.add_argument("--no-mouse", action="store_true", help="leave the mouse to the terminal")
    screen.add_argument("--paused", action="store_true", help="wait for a key after the prefill")


VERB = Verb(
    name="",
    usage=options.USAGE,
    summary="Record a model's decode and watch its attention and KV cache, step by step.\n\n"
    f"{options.MODEL_HELP}\nWithout MODEL: demo. A single FILE.kvt is opened.",
    examples=(
        ("kvtrace", "the built-in model looks up a name in its cache"),
        ('kvtrace gpt2 "hello"', "any causal language model of the hub"),
        ('kvtrace ./my-model "hello" -n 64 -o a.kvt', "a local one; keep the trace"),
        ('kvtrace gpt2 "hello" --recompute each', "time both lanes at every step, as for demo"),
        ("cat story.txt | kvtrace gpt2 -", "the prompt from a pipe"),
        ("kvtrace open a.kvt", "a trace again, without torch"),
    ),
    arguments=_arguments,
    run=run,
)
