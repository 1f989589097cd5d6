import json

import pytest

from kvtrace.live.messages import (
    Command,
    Ended,
    Failed,
    Lines,
    Paused,
    Progress,
    Request,
    Said,
    Started,
    Stepped,
    Tried,
    decode,
    encode,
)

EVERY_KIND = [
    Request("demo", "a.kvt"),
    Request("x" * 300, "/tmp/\udcff.kvt", 'a\0b\x1b[2J\n\u202e"\ud800', new_tokens=0, seed=7),
    Command("choose", 17),
    Started(1),
    Progress("reading weights", 0.25, 60.0),
    Progress("waiting"),
    Said("hello\nworld", "output"),
    Stepped(3, "a.kvt"),
    Paused(3),
    Tried("chunks", "chunked prefill", "", "it takes one token at a time"),
    Ended("length", "", "a.kvt"),
    Failed(74, "disk full", "Traceback …"),
]


@pytest.mark.parametrize("message", EVERY_KIND, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was(message):
    line = encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert decode(line[:-1]) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'{"kind": 7}',
        b'{"kind": "stranger"}',
        b'{"kind": "stepped"}',
        b'{"kind": "stepped", "number": "3", "path": "a"}',
        b'{"kind": "stepped", "number": true, "path": "a"}',
        b'{"kind": "stepped", "number": 3, "path": "a", "more": 1}',
        b'{"kind": "progress", "text": null}',
        b"[" * 100_000,
        b'{"kind": "stepped", "number": ' + b"9" * 10_000 + b', "path": "a"}',
    ],
)
def test_what_is_no_message_is_none(line):
    assert decode(line) is None


def test_a_missing_field_takes_its_default():
    content = {"kind": "command", "name": "run"}
    assert decode(json.dumps(content).encode()) == Command("run")


def test_lines_come_out_whole_however_the_bytes_arrive():
    stream = b"one\ntwo\n\nthree\n"
    for size in range(1, len(stream) + 1):
        lines = Lines()
        out = [
            line
            for at in range(0, len(stream), size)
            for line in lines.feed(stream[at : at + size])
        ]
        assert out == [b"one", b"two", b"", b"three"]


def test_a_line_beyond_the_limit_is_dropped_and_the_next_one_read():
    lines = Lines(limit=10)
    assert lines.feed(b"x" * 25) == []
    assert lines.feed(b"x" * 25) == []
    assert lines.feed(b"yyy\nshort\n") == [b"short"]


def test_what_has_no_newline_yet_is_handed_out_at_the_end():
    lines = Lines()
    assert lines.feed(b"a\nbc") == [b"a"]
    assert lines.end() == b"bc"
    assert lines.end() == b""
