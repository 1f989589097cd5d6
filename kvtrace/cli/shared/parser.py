"""The parser of a verb, and what its values must be."""

from __future__ import annotations

import argparse
import math
import re
import shutil
import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NoReturn

from kvtrace.errors import UsageError

_INDENT = 4
"""Spaces at most before the first column of a table."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose complaints are our errors.

    Args:
        prog: The command.
        usage: Of it.
        description: What it does.
        epilog: What stands below its options.
    """

    def __init__(self, prog: str, usage: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def format_help(self) -> str:
        """Help in lines that the terminal has room for."""
        return narrowed(super().format_help())

    def error(self, message: str) -> NoReturn:
        """Complain.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"{message}; see `{self.prog} --help`")


def narrowed(help_text: str) -> str:
    """Help in lines that the terminal has room for, broken between words.

    What has a line that is too long is filled anew: paragraphs, and the texts of a table's last
    column, whose further lines stand under it.
    """
    width = shutil.get_terminal_size().columns
    found: list[str] = []
    for indented, group in groupby(help_text.split("\n"), lambda line: line[:1] in ("", " ")):
        part = list(group)
        if max(map(len, part)) <= width:
            found += part
        elif indented:
            for line in _joined(part):
                found += _filled(line, width, _last_column(line))
        else:
            under = len("usage: ") if part[0].startswith("usage: ") else 0
            found += _filled(" ".join(part), width, under)
    return "\n".join(found)


def _filled(line: str, width: int, under: int) -> list[str]:
    under = under if 3 * under <= 2 * width else _INDENT
    lines = textwrap.wrap(
        line,
        width,
        subsequent_indent=" " * under,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines or [line]


def _joined(lines: Sequence[str]) -> list[str]:
    """A table's lines, those that go on under the last column joined to the one that they go on."""
    found: list[str] = []
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if found and line.strip() and indent == _last_column(found[-1]) > _INDENT:
            found[-1] += f" {line.strip()}"
        else:
            found.append(line)
    return found


def _last_column(line: str) -> int:
    """Where the last text begins that two spaces set apart from what is before it."""
    return max(match.end() for match in re.finditer(r"^ *|(?<=\S)   *", line))


def named(text: str) -> Path:
    """The path of a file; an empty word is none, and no name for the folder we are in.

    Raises:
        argparse.ArgumentTypeError: It is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; is a variable of the shell unset?")
    return Path(text)


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
