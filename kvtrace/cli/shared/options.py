"""The options of everything that records, and the request they make."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

from kvtrace.cli.shared import prompts
from kvtrace.cli.shared.parser import named, natural, temperature
from kvtrace.errors import UsageError
from kvtrace.live.messages import Request

DTYPES = ("auto", "float32", "float16", "bfloat16", "float64")
RECOMPUTE = ("once", "each", "off")

USAGE = "[MODEL [PROMPT]] [-n N] [-o FILE] [options]"
MODEL_HELP = """\
MODEL is one of
  demo               a small trained model that comes with kvtrace, and with a prompt;
                     demo-gqa and demo-cla too: shared kv heads, shared layers
  gpt2, org/name     a repository of the Hugging Face hub (hf:NAME is exact)
  ./folder           a local directory with config.json and safetensors
  file.py:factory    your own code: a function, class or variable that gives a model, or
                     (model, tokenizer); it runs with your rights. package.module:factory
                     and file.py:Class.method too
PROMPT is text in quotes, or - for standard input."""


def add(parser: argparse.ArgumentParser, *, unasked_tokens: int = 32) -> None:
    """Add them to a parser; `unasked_tokens` are made where no number is asked for."""
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    _run_options(parser.add_argument_group("the run"), unasked_tokens)
    _model_options(parser.add_argument_group("the model"))
    output = parser.add_argument_group("the trace")
    output.add_argument("-o", "--output", metavar="FILE", type=named, help="where to keep it")
    output.add_argument("--force", action="store_true", help="replace FILE if it exists")


def _run_options(group: argparse._ArgumentGroup, unasked_tokens: int) -> None:
    tokens = f"new tokens (default {unasked_tokens})"
    group.add_argument("-n", "--new-tokens", metavar="N", type=natural, help=tokens)
    group.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from a UTF-8 file; - is stdin"
    )
    group.add_argument(
        "--temperature",
        metavar="T",
        type=temperature,
        default=0.0,
        help="sample with this temperature; 0, the default, takes the likeliest token",
    )
    group.add_argument(
        "--top-k", metavar="K", type=natural, default=0, help="sample among the K likeliest"
    )
    group.add_argument("--seed", metavar="S", type=natural, help="of the sampling")
    group.add_argument(
        "--recompute",
        choices=RECOMPUTE,
        default="once",
        help="compare with a run without a cache: one pass at the end (default), one for each "
        "step (slow, measures its time), or not at all",
    )
    group.add_argument(
        "--keep-rows",
        action="store_true",
        help="keep the recomputed lane's rows however large; default: up to 256 MiB a pass",
    )


def _model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="default: as stored")
    group.add_argument(
        "--device",
        metavar="D",
        default="auto",
        help="cpu, cuda, cuda:1, …; default: an accelerator if there is one, and your own code "
        "stays where it put itself",
    )
    group.add_argument(
        "--attn", metavar="NAME", dest="attention", default="auto", help="eager, sdpa, …"
    )
    group.add_argument("--revision", metavar="R", default="", help="branch, tag or commit")
    group.add_argument(
        "--allow-missing",
        action="store_true",
        help="go on when weights are missing: they are random",
    )
    group.add_argument(
        "--allow-pickle", action="store_true", help="unpickle weights: that can run their code"
    )
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run Python files of the repository"
    )
    group.add_argument(
        "--cpu", action="store_true", help="your own code: .cuda() and 'cuda' mean the CPU"
    )
    group.add_argument(
        "--definitions",
        action="store_true",
        help="your own code: run its imports, classes, functions and plain values, and nothing "
        "else, as for a file that trains when it is imported",
    )


def model_and_prompt(
    values: argparse.Namespace, *, default_model: str = "", verb: str = ""
) -> tuple[str, str | None]:
    """The two words of the command, wherever the prompt stands.

    Args:
        values: As typed.
        default_model: Where none is named.
        verb: Of the command, for the advice.

    Returns:
        Model, and the prompt, None where a built-in model's own is meant.

    Raises:
        UsageError: One is missing, there are too many, or the prompt is not UTF-8.
    """
    command = f"kvtrace {verb}".rstrip()
    words: list[str] = values.words
    from_file: str | None = values.prompt_file
    if len(words) > 2 or (len(words) == 2 and from_file is not None):
        extra = words[2] if len(words) > 2 else words[1]
        raise UsageError(
            f"{extra!r} is one word too many: after MODEL comes one PROMPT, in quotes, "
            "or --prompt-file"
        )
    model = words[0] if words else default_model
    if not model.strip():
        raise UsageError(f'no model: try `{command} demo`, or `{command} gpt2 "hello"`')
    if len(words) == 2:
        typed = words[1]
        return model, prompts.from_file("-") if typed == "-" else prompts.from_argument(typed)
    if from_file is not None:
        return model, prompts.from_file(from_file)
    from kvtrace_fixtures import BUILT_IN

    if model not in BUILT_IN:
        raise UsageError(f'no prompt for {model}: {command} {model} "some text"')
    return model, None


def request(values: argparse.Namespace, model: str, prompt: str | None, output: Path) -> Request:
    """What the recorder is asked for: an option is called as the field that it fills.

    Raises:
        UsageError: Options that contradict each other.
    """
    seed: int | None = values.seed
    if values.top_k and not values.temperature:
        raise UsageError("--top-k samples only together with --temperature, such as 0.8")
    if values.temperature and seed is None:
        seed = secrets.randbits(31)  # recorded, so that the run can be repeated
    typed = {name: vars(values)[name] for name in Request.__struct_fields__ if name in values}
    typed |= {"model": model, "output": str(output), "prompt": prompt, "seed": seed}
    return Request(**typed)
