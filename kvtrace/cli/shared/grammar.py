"""How commands are written: the verbs, the parser, and what its values must be.

argparse takes 6 ms to import; libraries that draw prettier help take more than `kvtrace open`
may spend before its first screen.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import NoReturn

from msgspec import Struct

from kvtrace.errors import UsageError

VERBS = {
    "record": "record a run to a file, without a screen",
    "run": "run a script of your own, untouched, and record what attends in it",
    "check": "rounding or bug: cached against recomputed, and which bug it is",
    "diff": "two traces of one model: where they part, and by how much",
    "open": "open a trace in the screen",
    "show": "print what a trace says, as text or JSON",
    "info": "list what is in a trace file, every string included",
    "recover": "copy what can be read of a damaged or cut trace",
    "merge": "join the traces of tensor-parallel ranks to one with all heads",
    "zoo": "models with a planted bug in their cache, to look at",
}
"""Name of each verb to what it does; the module of the same name holds it."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose complaints are our errors."""

    def error(self, message: str) -> NoReturn:
        """Complain.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"{message}; see `{self.prog} --help`")


def _ours(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """All of them."""
    return words, ()


class Verb(Struct, frozen=True):
    """One verb of the command line.

    Attributes:
        name: What is typed after `kvtrace`; empty for recording and watching.
        usage: Its arguments as shown in help.
        summary: What it does, a sentence or two.
        examples: Pairs of (command, what it does).
        arguments: Adds its arguments to a parser.
        run: Does it; returns the exit code.
        divided: Parts the words of a command into ours and somebody else's behind them.
    """

    name: str
    usage: str
    summary: str
    examples: tuple[tuple[str, str], ...]
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    divided: Callable[[Sequence[str]], tuple[Sequence[str], Sequence[str]]] = _ours

    def parsed(self, words: Sequence[str]) -> argparse.Namespace:
        """What its words mean; those that are not ours are its `after`."""
        own, after = self.divided(words)
        values = self.parser().parse_intermixed_args(own)
        values.after = list(after)
        return values

    def parser(self) -> Parser:
        """A parser for its arguments."""
        prog = f"kvtrace {self.name}".rstrip()
        parser = Parser(
            prog=prog,
            usage=f"{prog} {self.usage}",
            description=self.summary,
            epilog=self.epilog(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.arguments(parser)
        parser.add_argument(
            "--debug", action="store_true", help="show a traceback when something goes wrong"
        )
        return parser

    def epilog(self) -> str:
        """Its examples, aligned."""
        width = max(len(command) for command, _ in self.examples)
        lines = [f"  {command.ljust(width)}   {what}" for command, what in self.examples]
        return "\n".join(["examples:", *lines])


def overview(bare: Verb) -> str:
    """The help of `kvtrace` itself: the bare command's, and the verbs."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name.ljust(width)}   {what}" for name, what in VERBS.items())
    text = bare.parser().format_help()
    return (
        f"{text}\nverbs:\n{verbs}\n\n`kvtrace VERB --help` explains each. A model called like a "
        "verb is written ./NAME or after `--`."
    )


def natural(text: str) -> int:
    """A whole number, 0 or more.

    Raises:
        argparse.ArgumentTypeError: It is not.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def temperature(text: str) -> float:
    """A finite number, 0 or more.

    Raises:
        argparse.ArgumentTypeError: It is not.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 0 or more")
    return value
