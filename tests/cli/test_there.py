"""Words that can't be the name of a file, and traces under other names."""

from pathlib import Path

import pytest

from kvtrace.cli.shared import outputs
from kvtrace.cli.shared.is_trace import is_trace
from kvtrace.errors import OutputExistsError, UsageError
from kvtrace.models.spec import parse_spec
from kvtrace.paths import is_file, is_folder

LONG = "once upon a time " * 40


def test_a_prompt_longer_than_any_file_name_names_nothing():
    assert not is_folder(Path(LONG))
    assert not is_file(Path(LONG))
    assert not is_trace(Path(LONG))
    assert not is_trace(Path("a\0b"))


def test_a_long_prompt_is_checked_as_a_prompt(kvtrace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = kvtrace("check", "./absent", LONG, "-n", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("kvtrace: ./absent: no such directory")


def test_names_that_no_file_can_have_are_usage_errors_of_one_line(tmp_path):
    with pytest.raises(UsageError, match="neither a directory here nor a hub id"):
        parse_spec(LONG)
    with pytest.raises(UsageError, match="no such file"):
        parse_spec(f"{LONG}.py")
    with pytest.raises(OutputExistsError, match="File name too long"):
        outputs.chosen(tmp_path / LONG, force=False)


@pytest.mark.parametrize("verb", [(), ("check",), ("show",)])
def test_a_trace_is_a_trace_under_any_name(kvtrace, trace_file, tmp_path, verb):
    copy = tmp_path / "trace of yesterday"
    copy.write_bytes(trace_file.read_bytes())
    code, out, err = kvtrace(*verb, copy)
    assert (code, err) == (kvtrace(*verb, trace_file)[0], "")
    assert out


def test_an_absent_trace_is_missed_as_a_trace_and_not_as_a_prompt(kvtrace, tmp_path):
    code, _, err = kvtrace(tmp_path / "absent.kvt")
    assert code == 65
    assert "absent.kvt: can't be read: No such file or directory" in err
