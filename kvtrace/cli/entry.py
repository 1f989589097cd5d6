"""Picks the verb, and turns whatever happens into one line and an exit code.

Knows the names of the verbs, not what they do. Errors of our own become their message; anything
else is called an internal error. A traceback is shown with `--debug` only.
"""

from __future__ import annotations

import gc
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO

from kvtrace.cli.shared.grammar import VERBS, Verb
from kvtrace.cli.shared.signals import Interrupted
from kvtrace.cli.shared.terminal import fill_closed_streams
from kvtrace.errors import KvtraceError, UsageError
from kvtrace.text import safe, safe_lines

_LONGEST = 2000
_NO_MEMORY = "there is not enough memory for this; free some, or record less"
_UNMAPPED = "failed to map segment"
"""What the system's loader says of a library for which there is no memory."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is returned."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    before_dashes = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in before_dashes
    fill_closed_streams()
    # overflow and NaN in what a model computed are shown as such, and no news for the terminal
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    _survive_any_locale()
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KvtraceError as error:
        code = _tell(error.exit_code, f"{error}{_verb_meant(arguments, error)}", error, debug)
    except SystemExit as error:  # argparse, after --help
        code = error.code if isinstance(error.code, int) else 0
    except Interrupted as error:
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 0  # the reader of our output has seen enough
    except MemoryError as error:
        code = _tell(3, _NO_MEMORY, error, debug)
    except OSError as error:
        what = error.filename or "the terminal or a pipe"
        code = _tell(74, f"{what}: {error.strerror or error}", error, debug)
    except Exception as error:
        text = f"internal error, {type(error).__name__}: {error}; --debug shows where"
        if isinstance(error, ImportError) and _UNMAPPED in str(error):
            text = _NO_MEMORY
        code = _tell(3, text, error, debug)
    return _let_go_of_output(code)


def _run(arguments: list[str]) -> int:
    """Find the verb, parse what follows it, run it; only then is there any garbage."""
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help") or first == "--version":
        return _about(first)
    name, rest = (first, arguments[1:]) if first in VERBS else ("", arguments)
    verb = load(name)
    values = verb.parsed(rest)
    words = getattr(values, "words", None)
    if not name and words and words[0] in VERBS and "--" not in arguments:
        raise UsageError(
            f"`{words[0]}` is a verb and comes first: kvtrace {words[0]} …; "
            f"for a model of that name write ./{words[0]}"
        )
    gc.enable()
    return verb.run(values)


def load(name: str) -> Verb:
    """The verb of that name; "" is recording and watching."""
    found = import_module(f"kvtrace.cli.{name or 'watch'}").VERB
    if not isinstance(found, Verb):
        raise TypeError(f"kvtrace.cli.{name}.VERB is no verb")
    return found


def _about(option: str) -> int:
    from kvtrace.cli.shared.grammar import overview
    from kvtrace.version import __version__

    print(f"kvtrace {__version__}" if option == "--version" else overview(load("")))
    return 0


def _verb_meant(arguments: list[str], error: KvtraceError) -> str:
    """A verb that the first word nearly is: what is no verb is taken for a model."""
    first = arguments[0] if arguments else ""
    if first in VERBS or not first.isalpha() or error.exit_code not in (2, 3):
        return ""
    from difflib import get_close_matches

    near = get_close_matches(first, VERBS, n=1, cutoff=0.75)
    return f"; did you mean `kvtrace {near[0]}`?" if near else ""


def _tell(code: int, text: str, error: BaseException, debug: bool) -> int:
    """One line on stderr; with debug, where it happened, in this process and in the recorder."""
    lines: list[str] = []
    if debug:
        raw = "".join(traceback.format_exception(error))
        lines += safe_lines(raw, max_lines=400, limit=1000)
    lines.append(f"kvtrace: {safe(text, _LONGEST)}")
    try:
        print(*lines, sep="\n", file=sys.stderr, flush=True)
    except OSError:  # nobody hears it; the exit code still says it
        _discard(sys.stderr)
    return code


def _survive_any_locale() -> None:
    """Signs that a terminal's encoding lacks are written as escapes, not as a crash."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _let_go_of_output(code: int) -> int:
    """Flush, so that the interpreter's own attempt at exit can't fail with a traceback."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
    except OSError as error:
        _discard(sys.stdout)
        return _tell(74, f"writing the output: {error.strerror}", error, False)
    except ValueError:
        pass  # closed already
    return code


def _discard(stream: TextIO) -> None:
    """What is left to be written goes nowhere: the interpreter's own attempt would fail too."""
    import os

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
