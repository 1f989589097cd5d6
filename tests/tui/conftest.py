"""What tests of the screen show, and the terminal they show it in."""

import pytest

from builders import Shape, synthetic_trace


@pytest.fixture
def truecolor(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def trace():
    return synthetic_trace(Shape(layers=3, heads=4, prompt=5, decode=6))
