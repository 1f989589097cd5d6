"""How commands are written: the verbs, and what each says of itself.

Their parser is made only where there is something to parse: argparse takes 6 ms to import, and
libraries that draw prettier help take more than `kvtrace open` may spend before its first screen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    import argparse

    from kvtrace.cli.shared.parser import Parser

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
        lone: What its parser makes of a single word that is no option, without the parser.
    """

    name: str
    usage: str
    summary: str
    examples: tuple[tuple[str, str], ...]
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    divided: Callable[[Sequence[str]], tuple[Sequence[str], Sequence[str]]] = _ours
    lone: Callable[[str], argparse.Namespace] | None = None

    def parsed(self, words: Sequence[str]) -> argparse.Namespace:
        """What its words mean; those that are not ours are its `after`."""
        own, after = self.divided(words)
        if self.lone is not None and len(words) == len(own) == 1 and own[0][:1] not in ("", "-"):
            return self.lone(own[0])
        values = self.parser().parse_intermixed_args(own)
        values.after = list(after)
        return values

    def parser(self) -> Parser:
        """A parser for its arguments."""
        from kvtrace.cli.shared.parser import Parser

        prog = f"kvtrace {self.name}".rstrip()
        parser = Parser(
            prog=prog,
            usage=f"{prog} {self.usage}",
            description=self.summary,
            epilog=self.epilog(),
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
    from kvtrace.cli.shared.parser import narrowed

    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name.ljust(width)}   {what}" for name, what in VERBS.items())
    text = bare.parser().format_help()
    return narrowed(
        f"{text}\nverbs:\n{verbs}\n\n`kvtrace VERB --help` explains each. A model called like a "
        "verb is written ./NAME or after `--`."
    )
