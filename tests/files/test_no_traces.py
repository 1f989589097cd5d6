"""What is no trace, or one of another format, is named in one line."""

import gzip
import os

import pytest

from builders import Shape, synthetic_trace
from builders.written import write_trace
from kvtrace.errors import TraceError, VersionError
from kvtrace.files import FileSource, open_trace
from kvtrace.files.layout import MAGIC, pack_header

SMALL = Shape(layers=1, heads=2, kv_heads=1, dim=2, prompt=9, decode=2)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "it is empty"),
        (MAGIC, "cut off after 8 bytes"),
        (MAGIC + bytes(20), "cut off after 28 bytes"),
        (b"PK\x03\x04" + bytes(26) + b"m/data.pkl" + bytes(99), "holds weights of a model"),
        (bytes([9, *bytes(7)]) + b'{"a": {}}' + bytes(99), "holds weights of a model"),
        (b"PK\x03\x04" + bytes(200), r"a zip archive\. Unpack it first"),
        (gzip.compress(MAGIC), r"gzip\. Unpack it first"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "Git LFS .* `git lfs pull`",
        ),
        (b"<!DOCTYPE html><html>404</html>" * 4, "a web page"),
        (pack_header(1).replace(b"\r\n", b"\n"), r"as text.* Copy it again as binary"),
        (pack_header(1).replace(b"\n", b"\r\n"), r"as text.* Copy it again as binary"),
        (pack_header(1).decode("latin1").encode("utf-16"), r"as text.* Copy it again as binary"),
        (b"\xef\xbb\xbf" + pack_header(1), r"as text.* Copy it again as binary"),
        (bytes(500), "starts with zeros"),
        (b"MZ" + bytes(200), r"does not start like one\. .*`kvtrace recover`"),
    ],
)
def test_what_is_no_trace_is_named_in_one_line(tmp_path, raw, text):
    path = tmp_path / "a.kvt"
    path.write_bytes(raw)
    with pytest.raises(TraceError, match=f"not a kvtrace file: .*{text}") as caught:
        open_trace(path)
    assert "\n" not in str(caught.value)


def test_directories_pipes_and_absent_files_are_named_in_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent", "pipe", "with\0nul", "long" * 100):
        with pytest.raises(TraceError, match="can't be read"):
            open_trace(tmp_path / name)
    with pytest.raises(TraceError, match=r"a folder without traces of ranks .* Name a trace file"):
        open_trace(tmp_path)


def test_a_newer_format_is_refused_with_both_numbers_and_the_remedy(tmp_path):
    path = write_trace(tmp_path / "a.kvt", synthetic_trace(SMALL))
    with path.open("r+b") as file:
        file.seek(8)
        file.write(b"\x07\x00")
    with pytest.raises(VersionError, match=r"format 7; .* up to 1\. Upgrade with `pip"):
        FileSource(path)


def test_a_format_that_never_was_is_called_damage_and_not_newer(tmp_path):
    path = write_trace(tmp_path / "a.kvt", synthetic_trace(SMALL))
    with path.open("r+b") as file:
        file.seek(8)
        file.write(b"\0\0")
    with pytest.raises(TraceError, match="format 0, which there never was: damaged"):
        open_trace(path)
