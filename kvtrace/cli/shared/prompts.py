"""The prompt from the command line, a file, or standard input, exactly as it is there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO

from kvtrace.errors import UsageError

LONGEST = 16 << 20
"""Bytes of a prompt; more than any context holds, less than what fills memory."""


def from_argument(text: str) -> str:
    """A prompt that was typed.

    Raises:
        UsageError: It is not UTF-8; names the byte.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        place = len(os.fsencode(text[: error.start]))
        byte = ord(text[error.start]) - 0xDC00
        raise UsageError(_not_utf8("the prompt", place, byte)) from None
    return text


def from_file(name: str) -> str:
    """A prompt in a file; `-` is standard input.

    Raises:
        UsageError: It can't be read, is too long, or is not UTF-8.
    """
    if name == "-":
        return _decoded(_read_input(), "standard input")
    try:
        with Path(name).open("rb") as file:
            return _decoded(_read(file, name), name)
    except OSError as error:
        raise UsageError(f"--prompt-file {name}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--prompt-file {name}: {error}") from None


def _read_input() -> bytes:
    # None where the shell closed it: `<&-`
    if sys.stdin is None:
        raise UsageError("standard input is closed; give the prompt in quotes, or a file")
    try:
        return _read(sys.stdin.buffer, "standard input")
    except OSError as error:
        raise UsageError(f"standard input: {error.strerror}") from None


def _read(file: BinaryIO, name: str) -> bytes:
    raw = file.read(LONGEST + 1)
    if len(raw) > LONGEST:
        raise UsageError(f"{name}: longer than {LONGEST >> 20} MiB, which no context holds")
    return raw


def _decoded(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(_not_utf8(name, error.start, raw[error.start])) from None


def _not_utf8(where: str, place: int, byte: int) -> str:
    return (
        f"{where}: byte {place} (0x{byte:02x}) is not UTF-8; give UTF-8 text, in quotes, "
        "with --prompt-file FILE, or - for standard input"
    )
