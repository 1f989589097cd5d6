"""The parser of a verb, and what its values must be."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn

from kvtrace.errors import UsageError


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

    def error(self, message: str) -> NoReturn:
        """Complain.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"{message}; see `{self.prog} --help`")


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
