from pathlib import Path

import pytest

from builders.synthetic import synthetic_trace
from builders.written import write_trace
from kvtrace.cli import main


@pytest.fixture(scope="session")
def trace():
    """A synthetic run, in memory."""
    return synthetic_trace()


@pytest.fixture(scope="session")
def trace_file(trace, tmp_path_factory) -> Path:
    """The same, in a file."""
    return write_trace(tmp_path_factory.mktemp("traces") / "s.kvt", trace)


@pytest.fixture
def cut_file(trace_file, tmp_path) -> Path:
    """The same, cut before its end."""
    path = tmp_path / "cut.kvt"
    path.write_bytes(trace_file.read_bytes()[:-20_000])
    return path


@pytest.fixture
def kvtrace(capsys):
    """Run a command here; gives (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run
