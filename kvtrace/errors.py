"""The errors kvtrace raises on purpose, and the exit code each one becomes.

    KvtraceError                    an exit code and one line a person can act on
    ├── UsageError             2    the command line or an argument is wrong
    ├── RecordError            3    could not record or check
    │   ├── ModelError         3    the model can't be loaded, or has no KV cache
    │   ├── HubError           3    the hub is unreachable, or refuses
    │   └── MemoryLimitError   3    it would not fit, or was killed for memory
    ├── TraceError            65    not a trace, or damaged
    │   ├── VersionError      65    written by a newer kvtrace
    │   └── MissingError       4    that step or tensor is not in this trace
    ├── OutputExistsError     73    can't create the output
    ├── WriteError            74    writing failed (disk full, I/O error)
    └── TrustError            77    refused: needs the user's trust

Every message says where, what was found, what was expected and what to do, in one line.
This module knows no other.
"""

from __future__ import annotations

from typing import ClassVar


class KvtraceError(Exception):
    """An error with a message for people and an exit code for scripts."""

    exit_code: ClassVar[int] = 3


class UsageError(KvtraceError):
    """The command line, or an argument of a public function, is wrong."""

    exit_code = 2


class RecordError(KvtraceError):
    """Nothing could be recorded or checked."""

    exit_code = 3


class ModelError(RecordError):
    """The model can't be loaded, is incomplete, or has no KV cache."""


class HubError(RecordError):
    """The hub can't be reached, or said no."""


class MemoryLimitError(RecordError):
    """The run would not fit in memory, or was killed because it did not."""


class TraceError(KvtraceError):
    """The file is not a trace, or is damaged."""

    exit_code = 65


class VersionError(TraceError):
    """The trace was written by a newer format than this one."""


class MissingError(TraceError):
    """What was asked for is not in this trace: never recorded, cut off, or damaged."""

    exit_code = 4


class OutputExistsError(KvtraceError):
    """The output can't be created: it exists, or somebody is writing it."""

    exit_code = 73


class WriteError(KvtraceError):
    """Writing failed; everything acknowledged before is on disk."""

    exit_code = 74


class TrustError(KvtraceError):
    """Refused, because it would run or unpickle somebody else's code."""

    exit_code = 77
