"""How paths are told to people."""

from pathlib import Path

import pytest

from kvtrace.paths import shown


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    (tmp_path / "home" / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home" / "work")


def test_a_path_is_told_from_here_or_from_home_or_whole(tmp_path):
    assert shown(Path("a.kvt")) == "a.kvt"
    assert shown(tmp_path / "home" / "work" / "runs" / "a.kvt") == "runs/a.kvt"
    assert shown(tmp_path / "home" / "a.kvt") == "~/a.kvt"
    assert shown(tmp_path / "a.kvt") == str(tmp_path / "a.kvt")
