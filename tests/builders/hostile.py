"""Files made to hurt: values made up in the JSON of their frames, read within bounds."""

import json
import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from builders.raw_frames import RawFrame
from builders.reading import read_all
from kvtrace.errors import TraceError
from kvtrace.files import open_trace

NUMBERS = (0, -1, 1, 2, 7, 63, 64, 65, 255, 256, 2**16, 2**31, 2**32, 2**48, 2**62, 2**63, 10**30)

STRANGE = (
    None,
    True,
    [],
    {},
    "",
    "x",
    "\ud800",
    0.5,
    1e308,
    float("nan"),
    [[]],
    [0],
    ["a"],
    {"0": 1},
)

SECONDS = 600


@contextmanager
def bounded():
    """No hang and no gigabytes: both would end the test."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)


def put(path: Path, raw: bytes) -> None:
    """Write a file over itself: emptying it first would wait for the disk each time."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, raw, 0)
        os.ftruncate(fd, len(raw))
    finally:
        os.close(fd)


def survive(path, raw: bytes) -> bool:
    """Read everything of a hostile file; whether it opened."""
    put(path, raw)
    try:
        trace = open_trace(path)
    except TraceError:
        return False
    read_all(trace)
    for number in trace.numbers:
        for read in (trace.chosen, trace.step, trace.reference, lambda n: trace.weights(n, 0)):
            try:
                read(number)
            except TraceError:
                continue
    return True


def places(value, path=()):
    """Addresses of every value in parsed JSON."""
    yield path
    if not isinstance(value, dict | list):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from places(item, (*path, key))


def changed(value, chance):
    """The same JSON with one value replaced, removed or doubled."""
    value = json.loads(json.dumps(value))
    inside = [one for one in places(value) if one]
    if not inside:
        return value
    path = chance.choice(inside)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    what = chance.random()
    if what < 0.6:
        parent[path[-1]] = chance.choice(NUMBERS)
    elif what < 0.8:
        parent[path[-1]] = chance.choice(STRANGE)
    elif what < 0.9:
        del parent[path[-1]]
    elif isinstance(parent, list):
        parent.insert(path[-1], parent[path[-1]])
    else:
        parent[path[-1]] = [parent[path[-1]]] * 3
    return value


def following(frames: list[RawFrame], kind: int, text: bytes, **changes) -> RawFrame:
    """A frame of the same file behind all others."""
    after = frames[-1].sequence + 1
    made = replace(frames[-1], kind=kind, flags=0, sequence=after, json=text, units=())
    return replace(made, **changes)


def with_json(frame: RawFrame, value) -> RawFrame:
    return replace(frame, json=json.dumps(value).encode())
