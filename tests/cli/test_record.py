"""From the command to the trace and back: the built-in model, the hub, no torch, no terminal."""

import json
import os
import re
from pathlib import Path

import pytest

from builders.commands import environment, run
from builders.encoder_decoders import t5
from builders.hub import FakeHub, Repository
from builders.tiny_models import tiny_model
from kvtrace.analysis.summary import summary
from kvtrace.cli.entry import load
from kvtrace.cli.shared import options
from kvtrace.cli.show.plain import plain
from kvtrace.files import open_trace

NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "tokenizers", "safetensors"):
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="session")
def recorded(tmp_path_factory) -> Path:
    """The built-in model, six tokens."""
    folder = tmp_path_factory.mktemp("recorded")
    code, out, err = run("record", "demo", "-n", 6, "-o", "a.kvt", cwd=folder)
    assert (code, out.splitlines()[-1]) == (0, out.strip()), err
    assert re.fullmatch(r"a\.kvt: [\d.]+ KiB, ended: \w+, .*\n", out)
    assert "built-in demo" in err
    return folder / "a.kvt"


@pytest.fixture(scope="session")
def without_torch(tmp_path_factory) -> dict[str, str]:
    """An environment in which torch can't be imported."""
    folder = tmp_path_factory.mktemp("refusing")
    (folder / "sitecustomize.py").write_text(NO_TORCH)
    return environment(PYTHONPATH=str(folder))


def test_a_recorded_run_says_what_was_asked_for(recorded):
    trace = open_trace(recorded)
    assert len(trace) == 6
    assert trace.ending.reason in ("length", "eos")
    assert trace.meta.model.name == "demo"
    assert trace.meta.sampling.max_new_tokens == 6
    assert trace.meta.prompt.startswith("Anna")
    assert not trace.damage


def test_an_encoder_decoder_reads_the_prompt_and_writes_what_follows(tmp_path):
    t5().save_pretrained(tmp_path / "reader")
    code, _, err = run("record", "./reader", "A B", "-n", 3, "-o", "a.kvt", cwd=tmp_path)
    assert code == 0, err
    assert "the encoder reads the prompt once, the decoder begins with token 0" in err
    trace = open_trace(tmp_path / "a.kvt")
    assert summary(trace, 0).sentence.startswith("step 0 (encoder) computed 3 rows of Q, K, V")
    assert len(trace) == 4


@pytest.mark.parametrize("verb", ["show", "open", "info"])
def test_without_torch_a_trace_is_read_all_the_same(recorded, without_torch, verb):
    code, out, err = run(verb, recorded, cwd=recorded.parent, env=without_torch)
    assert (code, err) == (0, "")
    assert "demo" in out


def test_without_torch_json_says_the_numbers_of_the_api(recorded, without_torch):
    options = ["--json", "--step", 5, "--layer", 2, "--numbers"]
    code, out, err = run("show", recorded, *options, cwd=recorded.parent, env=without_torch)
    assert (code, err) == (0, "")
    told, trace = json.loads(out), open_trace(recorded)
    assert [step["sentence"] for step in told["steps"]] == [
        summary(trace, number).sentence for number in trace.numbers
    ]
    for step in told["steps"]:
        assert step["recorded"]["cost"] == plain(trace.step(step["number"]).cost)
    assert told["at"]["tensors"]["keys"]["values"] == trace.cache(5, 2, head=0).keys[0].tolist()
    weights = told["at"]["tensors"]["weights"]["values"]
    assert weights == trace.weights(5, 2, 0).weights[0].tolist()
    assert told["meta"]["model"] == plain(trace.meta.model)


def test_a_trace_holds_no_path_user_or_host(recorded):
    _, out, _ = run("info", recorded, "--json", cwd=recorded.parent)
    text = "\n".join(json.loads(out)["strings"])
    private = [str(recorded.parent), str(Path.home()), os.uname().nodename, str(Path.cwd())]
    assert not [secret for secret in private if len(secret) > 3 and secret in text]


def test_without_a_terminal_the_bare_command_prints_the_summary(tmp_path):
    env = environment(XDG_CACHE_HOME=str(tmp_path))
    code, out, err = run("demo", "Anna has", "-n", 2, "--recompute", "off", cwd=tmp_path, env=env)
    assert code == 0, err
    assert "step 1 computed 1 row of Q, K, V instead of" in out
    kept = list((tmp_path / "kvtrace").iterdir())
    assert len(kept) == 1
    assert f"The trace is {kept[0].relative_to(tmp_path)}" in out
    assert open_trace(kept[0]).meta.prompt == "Anna has"


def test_a_model_of_the_hub_is_recorded(tmp_path):
    folder = tmp_path / "files"
    tiny_model("gpt2").save_pretrained(folder)
    (folder / "README.md").write_text("a tiny GPT-2")
    with FakeHub({"gpt2": Repository(folder)}) as hub:
        env = environment(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"))
        arguments = ["record", "gpt2", "hello", "-n", 2, "-o", "a.kvt"]
        code, _, err = run(*arguments, cwd=tmp_path, env=env)
    assert code == 0, err
    assert open_trace(tmp_path / "a.kvt").meta.model.name == "gpt2"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nobody/nothing", "nobody/nothing"),
        ("./missing", "no such directory"),
        ("missing.py:make", "missing.py"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(tmp_path, model, message):
    env = environment(HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "home"))
    code, out, err = run("record", model, "hello", "-o", "a.kvt", cwd=tmp_path, env=env)
    assert code in (2, 3)
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "a.kvt").exists()


@pytest.mark.parametrize("endpoint", ["http://a:99999", "http://[::1"])
def test_an_endpoint_at_which_libraries_end_is_named(tmp_path, endpoint):
    env = environment(HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "home"))
    code, _, err = run("record", "demo", "-n", 2, cwd=tmp_path, env=env)
    assert code == 3
    assert err == (
        "kvtrace: HF_ENDPOINT is not an address such as https://HOST:PORT; correct or unset it\n"
    )


def test_a_prompt_longer_than_the_context_names_both_numbers(tmp_path):
    (tmp_path / "long.txt").write_text("word " * 4000)
    code, _, err = run("record", "demo", "--prompt-file", "long.txt", cwd=tmp_path)
    assert code == 2
    assert "context holds 256" in err
    assert list(tmp_path.glob("*.kvt")) == []


def test_the_built_in_model_on_screen_is_timed_in_both_lanes_unless_told_otherwise(tmp_path):
    env = environment(XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path))
    code, out, err = run("demo", "Anna has", "-n", 3, "-o", "a.kvt", cwd=tmp_path, env=env)
    assert code == 0, err
    (lane,) = open_trace(tmp_path / "a.kvt").meta.lanes
    assert (lane.name, lane.mode) == ("recomputed", "each")
    assert "recomputed (each" in out


@pytest.mark.parametrize("words", [[], ["--keep-rows"]])
def test_keep_rows_is_handed_to_the_recorder(words):
    parsed = load("record").parser().parse_args(["demo", "one", *words])
    asked = options.request(parsed, "demo", "one", Path("a.kvt"))
    assert asked.keep_rows is bool(words)
