"""One hub and one loading process for all tests of the load gate."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import pytest

from builders.driven import SMALL, forgotten
from builders.hub import FakeHub, Repository
from builders.load_child import LoadChild
from kvtrace.models import LoadRequest, load
from kvtrace_fixtures import BUILT_IN

DEMO = BUILT_IN["demo"].directory
AT_ONCE = ("401", "403", "404", "gated", "429", "503", "reset", "html", "silent")
AT_WEIGHTS = ("html", "reset", "401", "silent", "short", "altered")


@pytest.fixture(scope="session")
def hub():
    """Serves the tiny GPT-2 as gpt2, and each fault as a repository of its own."""
    served = {"gpt2": Repository(DEMO), "owner/fresh": Repository(DEMO)}
    served |= {f"fails/{fault}": Repository(DEMO, fault) for fault in AT_ONCE}
    served |= {
        f"late/{fault}": Repository(DEMO, fault, "model.safetensors") for fault in AT_WEIGHTS
    }
    with FakeHub(served) as running:
        yield running


@pytest.fixture(scope="session")
def child(hub, tmp_path_factory):
    """A process that has torch and transformers imported, and asks the hub above."""
    home = tmp_path_factory.mktemp("hub")
    with LoadChild(HF_ENDPOINT=hub.url, HF_HOME=str(home), HF_TOKEN="hf_secret") as running:
        yield running


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the demo's directory, to be damaged."""
    return Path(shutil.copytree(DEMO, tmp_path / "copy"))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes a user's file after a small model, and loads it."""
    monkeypatch.chdir(tmp_path)
    with forgotten():

        def loaded(code, factory="", *, bare=False, **options):
            text = textwrap.dedent(code)
            (tmp_path / "mine.py").write_text(text if bare else SMALL + text)
            spec = f"mine.py:{factory}" if factory else "mine.py"
            request = LoadRequest(spec, **({"prompt": "ab"} | options))
            return load(request, lambda text, share: None)

        yield loaded
