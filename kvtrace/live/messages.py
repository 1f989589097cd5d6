"""What the recording process and its parent say to each other, one JSON object a line.

Requests and commands go down, events come up. Lines are ASCII, so a newline always ends one, and
a line that is not understood is reported and skipped, never fatal. Knows nothing of pipes,
processes or torch.
"""

from __future__ import annotations

import json

from msgspec import Struct
from msgspec.structs import asdict

PROTOCOL = 1
"""Of the messages; both ends come from one installation, so it must be equal."""

MAX_LINE = 64 << 20
"""Bytes after which a line is given up as garbage: a long prompt fits, a flood does not."""


class Request(Struct, frozen=True):
    """What to record; the first line that goes down.

    Attributes:
        model: Hub id, directory, `file.py:factory`, or a built-in name.
        prompt: Text, exactly as given; None: the built-in model's own.
        output: Path of the trace.
        force: Replace an existing trace.
        new_tokens: Decode steps; None: the built-in's number, or what fits, up to
            `unasked_tokens`.
        seed, temperature, top_k: How tokens are chosen; temperature 0 is greedy.
        dtype, device, attention: "auto", or what to use instead.
        recompute: "once", "each" or "off".
        referee: Recompute one precision up too.
        keep_rows: Keep the other lanes' rows, however large.
        ways: Further ways of driving the model, of `verify.ways.WAYS`, with commas between; "all"
            for all of them, "none" for the run alone; empty: no check.
        allow_missing, allow_pickle, trust_remote_code: What the user vouches for.
        cpu, definitions: Of a user's file: its GPU is the CPU; only its definitions are run.
        revision: Of a hub repository; empty: the default branch.
        paused: Wait for a command after the prefill.
        protocol: Of the sender.
    """

    model: str
    output: str
    prompt: str | None = None
    force: bool = False
    new_tokens: int | None = None
    unasked_tokens: int = 32
    seed: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    dtype: str = "auto"
    device: str = "auto"
    attention: str = "auto"
    recompute: str = "once"
    referee: bool = False
    keep_rows: bool = False
    ways: str = ""
    allow_missing: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False
    cpu: bool = False
    definitions: bool = False
    revision: str = ""
    paused: bool = False
    protocol: int = PROTOCOL


class Command(Struct, frozen=True):
    """Something the user wants, obeyed between two steps.

    Attributes:
        name: "run", "pause", "step", "stop" or "choose".
        token: For choose: the token id to go on with.
    """

    name: str
    token: int = -1


class Started(Struct, frozen=True):
    """The recorder is up; nothing heavy is loaded yet."""

    protocol: int


class Progress(Struct, frozen=True):
    """Something moves while loading.

    Attributes:
        text: What is being done, in a few words.
        share: Done of it, 0 to 1; None when unknown.
        patience: Seconds without a sign of life after which it hangs; 0: never.
    """

    text: str
    share: float | None = None
    patience: float = 0.0


class Said(Struct, frozen=True):
    """A line for people: what was chosen, a banner, what the library printed.

    Attributes:
        text: One line, raw: sanitise it before showing.
        source: "kvtrace", "output" (the child's stdout and stderr), or "garbage".
    """

    text: str
    source: str = "kvtrace"


class Stepped(Struct, frozen=True):
    """A step is in the trace file.

    Attributes:
        number: Of the step.
        path: The trace.
    """

    number: int
    path: str


class Paused(Struct, frozen=True):
    """The recorder waits for a command after this step."""

    number: int


class Tried(Struct, frozen=True):
    """A way of driving the model was tried, and its trace is closed.

    Attributes:
        way: "decode" for the run itself, else of `verify.ways.WAYS`.
        title: What it was to do, in a few words.
        path: Its trace; empty: there is none.
        trouble: Why there is none.
        presumed: Nothing shows that the model was written to be driven so.
    """

    way: str
    title: str
    path: str
    trouble: str = ""
    presumed: bool = False


class Ended(Struct, frozen=True):
    """The trace is closed.

    Attributes:
        reason: As in `Ending.reason`.
        text: A sentence, may be empty.
        path: The trace.
    """

    reason: str
    text: str
    path: str


class Failed(Struct, frozen=True):
    """The recorder gives up.

    Attributes:
        code: Exit code.
        text: The one line for people.
        details: A traceback for `--debug`.
    """

    code: int
    text: str
    details: str = ""


Message = Request | Command | Started | Progress | Said | Stepped | Paused | Tried | Ended | Failed
Event = Started | Progress | Said | Stepped | Paused | Tried | Ended | Failed

_KINDS: dict[str, type[Message]] = {
    kind.__name__.lower(): kind
    for kind in (Request, Command, Started, Progress, Said, Stepped, Paused, Tried, Ended, Failed)
}
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (int, float),
    "int | None": (int, type(None)),
    "str | None": (str, type(None)),
    "float | None": (int, float, type(None)),
}


def encode(message: Message) -> bytes:
    """One line, newline included."""
    content = {"kind": type(message).__name__.lower(), **asdict(message)}
    return json.dumps(content, ensure_ascii=True).encode("ascii") + b"\n"


def decode(line: bytes) -> Message | None:
    """The message in a line; None when it is none: wrong JSON, kind, fields or types."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    called = content.pop("kind", None)
    kind = _KINDS.get(called) if isinstance(called, str) else None
    if kind is None or not all(
        name not in content or _fits(content[name], str(kind.__annotations__[name]))
        for name in kind.__struct_fields__
    ):
        return None
    try:
        return kind(**content)
    except TypeError:
        return None


def _fits(value: object, annotation: str) -> bool:
    wanted = _TYPES[annotation]
    return isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))


class Lines:
    """Cuts a stream of bytes into lines; what is longer than `limit` is dropped up to its end."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._dropping = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes, without their newline."""
        *complete, rest = chunk.split(b"\n")
        out: list[bytes] = []
        for part in complete:
            if not self._dropping:
                out.append(bytes(self._rest) + part)
            self._rest.clear()
            self._dropping = False
        self._rest += rest
        if len(self._rest) > self._limit:
            self._rest.clear()
            self._dropping = True
        return out

    def end(self) -> bytes:
        """What was left without a newline."""
        rest = bytes(self._rest)
        self._rest.clear()
        return rest
