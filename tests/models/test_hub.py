"""The hub, real and misbehaving; offline, with and without a cache."""

import shutil

import pytest
from huggingface_hub import constants

from builders.hub import Repository
from kvtrace.errors import HubError
from kvtrace.models.hub.faults import shown_endpoint
from kvtrace_fixtures import BUILT_IN

DEMO = BUILT_IN["demo"].directory
LIMITS = {"answer_s": 1.0, "download_s": 2.0}


def test_a_hub_id_is_downloaded_and_loaded(hub, child):
    loaded = child.load("gpt2", prompt="Anna asks")
    assert loaded.error == ""
    assert loaded.card["class_name"] == "GPT2LMHeadModel"
    assert loaded.card["weights"] == hub.repositories["gpt2"].commit
    assert loaded.tokens == ("Anna", " asks")
    assert any("downloading gpt2: model.safetensors" in told for told in loaded.progress)


def test_an_endpoint_that_is_not_the_default_is_said_but_not_recorded(hub, child):
    loaded = child.load("gpt2", prompt="Anna", revision=hub.repositories["gpt2"].commit)
    told = " ".join((*loaded.progress, loaded.chosen))
    assert f"127.0.0.1:{hub.port} (HF_ENDPOINT; your token goes there)" in told or (
        "from the cache" in told
    )
    recorded = str(loaded.card)
    assert "127.0.0.1" not in recorded
    assert "hf_secret" not in recorded
    assert "/" not in recorded


def test_a_fresh_download_names_the_endpoint(hub, child):
    loaded = child.load("owner/fresh", prompt="Anna")
    assert f"127.0.0.1:{hub.port} (HF_ENDPOINT; your token goes there)" in loaded.chosen
    assert "Bearer hf_secret" in hub.authorization


def test_a_token_is_spoken_of_only_where_there_is_one(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert shown_endpoint() == "127.0.0.1:9 (HF_ENDPOINT; your token goes there)"
    monkeypatch.delenv("HF_TOKEN")
    assert shown_endpoint() == "127.0.0.1:9 (HF_ENDPOINT)"


def test_a_cached_model_is_loaded_without_a_question(hub, child):
    child.load("gpt2", prompt="Anna")
    asked = len(hub.asked)
    loaded = child.load("gpt2", prompt="Anna")
    assert loaded.error == ""
    assert "from the cache" in loaded.chosen
    assert hub.asked[asked:] == []


CAUSES = {
    "401": "does not know it, or it is private (401)",
    "403": "refuses it to you (403)",
    "404": "no such model or file (404)",
    "gated": "ask for access",
    "429": "too many requests (429)",
    "503": "out of order (503)",
    "reset": "broke the connection off during the list of files",
    "html": "such as an HTML page",
    "silent": "accepted the connection but",
}


@pytest.mark.parametrize("fault", CAUSES)
def test_a_hub_that_fails_at_once_gets_a_message_by_cause(child, fault):
    loaded = child.load(f"fails/{fault}", wait=LIMITS)
    assert (loaded.error, loaded.exit_code) == ("HubError", 3)
    assert loaded.message.startswith(f"fails/{fault}: ")
    assert CAUSES[fault] in loaded.message
    assert "\n" not in loaded.message


LATE = {
    "401": "does not know it, or it is private (401)",
    "html": "such as an HTML page",
    "reset": "broke the connection off during model.safetensors",
    "silent": "sent nothing more of model.safetensors for 2 s",
}


@pytest.mark.parametrize("fault", LATE)
def test_a_hub_that_fails_during_a_file_names_the_file(child, fault):
    loaded = child.load(f"late/{fault}", wait=LIMITS)
    assert loaded.error == "HubError"
    assert LATE[fault] in loaded.message


def test_a_file_that_is_always_cut_off_is_given_up(child):
    loaded = child.load("late/short", wait={"download_s": 60.0})
    assert loaded.error == "HubError"
    assert "sent only a part of model.safetensors" in loaded.message


def test_a_file_that_is_not_what_its_sha256_says_is_refused_and_not_kept(child):
    for _ in range(2):  # what is in the cache would be loaded without a question
        loaded = child.load("late/altered")
        assert (loaded.error, loaded.exit_code) == ("HubError", 3)
        assert "sent as model.safetensors has not the SHA-256 that it names" in loaded.message


def test_a_revision_that_is_not_there_is_named(child):
    loaded = child.load("gpt2", revision="v9")
    assert loaded.error == "HubError"
    assert "has no revision 'v9' of it" in loaded.message


def test_a_repository_with_only_a_pickle_is_refused_before_it_is_downloaded(hub, child, tmp_path):
    folder = shutil.copytree(DEMO, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub.repositories["owner/pickled"] = Repository(folder)
    loaded = child.load("owner/pickled")
    assert (loaded.error, loaded.exit_code) == ("TrustError", 77)
    assert "--allow-pickle" in loaded.message
    assert not any("pytorch_model.bin" in asked for asked in hub.asked)


def test_a_repository_that_needs_its_own_code_is_refused_before_its_weights(hub, child, tmp_path):
    folder = shutil.copytree(DEMO, tmp_path / "coded")
    text = (folder / "config.json").read_text()
    mapped = '{"auto_map": {"AutoModelForCausalLM": "modeling_odd.OddLM"},'
    text = text.replace('"model_type": "gpt2"', '"model_type": "odd"')
    (folder / "config.json").write_text(text.replace("{", mapped, 1))
    (folder / "modeling_odd.py").write_text("raise SystemExit('it ran')\n")
    found = hub.repositories["owner/coded"] = Repository(folder)
    loaded = child.load("owner/coded")
    assert (loaded.error, loaded.exit_code) == ("TrustError", 77)
    assert "modeling_odd.py" in loaded.message
    assert found.commit[:12] in loaded.message
    assert not any("owner/coded/resolve" in ask and "safetensors" in ask for ask in hub.asked)


@pytest.fixture
def gone(hub):
    """The hub is out of reach during the test."""
    hub.__exit__()
    yield
    hub.__enter__()


def test_offline_a_cached_model_loads_and_another_gets_one_probe(hub, child, request):
    assert child.load("gpt2", prompt="Anna").error == ""
    request.getfixturevalue("gone")
    cached = child.load("gpt2", prompt="Anna")
    other = child.load("owner/other")
    assert cached.error == ""
    assert "from the cache" in cached.chosen
    assert other.error == "HubError"
    assert "not cached here" in other.message
    assert "the built-in demo needs no network: kvtrace demo" in other.message


def test_with_the_offline_switch_set_nothing_is_asked(monkeypatch, tmp_path):
    from huggingface_hub import constants

    from kvtrace.models import LoadRequest, load

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        load(LoadRequest("gpt2"), lambda text, share: None)
