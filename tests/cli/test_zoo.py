"""`kvtrace zoo`: a list that needs no torch, and a trace of any bug in it."""

import subprocess
import sys

import pytest

from kvtrace.analysis.checks import check
from kvtrace.cli.entry import main
from kvtrace.cli.zoo import listing
from kvtrace.files import open_trace
from kvtrace_fixtures.zoo import catalogue


@pytest.mark.parametrize("width", [60, 100, 200])
def test_every_bug_is_listed_with_its_kind_and_story(width):
    text = "\n".join(listing(width))
    for bug in catalogue().values():
        line = next(one for one in text.splitlines() if one.split()[:1] == [bug.name])
        assert bug.kind in line
        assert bug.story.split()[0] in line


def test_the_list_needs_no_torch():
    code = "import sys; from kvtrace.cli import main; main(['zoo']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_name_that_is_not_there_is_told_what_is_near(capsys):
    for typed, near in (
        ("rope-restart", "did you mean rope-restarts?"),
        ("roep-restarts", "did you mean rope-restarts"),
        ("nope", "`kvtrace zoo` lists them"),
    ):
        assert main(["zoo", typed]) == 2
        assert near in capsys.readouterr().err


def test_a_bug_is_recorded_and_then_found(tmp_path, capsys):
    path = tmp_path / "a.kvt"
    assert main(["zoo", "square-mask", "--record", "-o", str(path)]) == 0
    assert "MASK-TOP-LEFT planted" in capsys.readouterr().out
    assert check(open_trace(path)).findings[0].name == "MASK-TOP-LEFT"
    assert main(["zoo", "square-mask", "--record", "-o", str(path)]) == 73
    assert "--force" in capsys.readouterr().err
