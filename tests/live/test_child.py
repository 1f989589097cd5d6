"""The real recorder, driven through a session by commands."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save_file

from builders.commands import SLOW_MODEL, is_gone
from kvtrace.analysis.checks import EQUAL, check
from kvtrace.files import open_trace
from kvtrace.live.messages import (
    Ended,
    Failed,
    Paused,
    Progress,
    Request,
    Said,
    Started,
    Stepped,
    Tried,
)
from kvtrace.live.session import Session

FACTS = """

def facts():
    import os, sys
    print("niceness", os.nice(0))
    print("policy", os.environ["OMP_WAIT_POLICY"])
    print("own session", os.getsid(0) == os.getpid())
    print("input", repr(sys.stdin.read()))
    return make()

def forked():
    import os
    model = make()
    os.fork()
    return model
"""

NO_ATTENTION = (
    "no attention was seen: the model is recurrent, or attends in a form that kvtrace can't follow"
)


class Driven:
    """A session, and everything heard of it."""

    def __init__(self, request: Request) -> None:
        self.session = Session(request)
        self.events = []

    def until(self, wanted) -> None:
        end = time.monotonic() + 120
        while not any(wanted(event) for event in self.events):
            assert time.monotonic() < end
            assert not self.session.finished, self.events
            self.session.wait(0.1)
            self.events += self.session.poll()

    def until_paused(self, times: int, number: int) -> None:
        self.until(lambda _: self.events.count(Paused(number)) >= times)

    def to_the_end(self) -> None:
        while not self.session.finished:
            self.session.wait(0.1)
            self.events += self.session.poll()


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "slow.py"
    path.write_text(SLOW_MODEL + FACTS)
    return path


def test_a_paused_run_obeys_step_by_step_and_takes_the_users_token(script, tmp_path):
    path = tmp_path / "a.kvt"
    request = Request(
        f"{script}:facts", str(path), "hello", new_tokens=5, recompute="off", paused=True
    )
    driven = Driven(request)
    with driven.session as session:
        driven.until_paused(1, 0)
        assert open_trace(path).chosen(0) is None
        session.send("choose", 65)
        driven.until_paused(1, 1)
        assert open_trace(path).chosen(0) == 65
        assert open_trace(path).step(1).tokens == ((65,),)
        session.send("choose", 300)
        driven.until_paused(2, 1)
        session.send("step")
        driven.until_paused(1, 2)
        assert len(open_trace(path)) == 3
        session.send("run")
        driven.until(lambda event: event == Stepped(3, str(path)))
        driven.to_the_end()
    trace = open_trace(path)
    assert driven.events[0] == Started(1)
    assert isinstance(driven.events[1], Progress)
    assert driven.events[-1] == Ended("length", trace.ending.text, str(path))
    said = [event.text for event in driven.events if isinstance(event, Said)]
    assert "token 300 was chosen, but ids go from 0 to 299" in said
    niceness = min(19, os.nice(0) + 10)
    for fact in (f"niceness {niceness}", "policy PASSIVE", "own session True", "input ''"):
        assert fact in said
    stepped = [event.number for event in driven.events if isinstance(event, Stepped)]
    assert stepped == list(trace.numbers) == [0, 1, 2, 3, 4]
    assert all(trace.chosen(number) is not None for number in trace.numbers)
    assert session.failure is None


def test_a_text_that_ends_names_the_token_that_ended_it(tmp_path):
    path = tmp_path / "a.kvt"
    request = Request("demo", str(path), new_tokens=4, recompute="off", paused=True)
    driven = Driven(request)
    with driven.session as session:
        driven.until_paused(1, 0)
        session.send("choose", 0)
        driven.to_the_end()
    ending = open_trace(path).ending
    assert ending.text == "the model ended the text with <|endoftext|>"


def test_a_pause_at_the_last_step_still_records_its_token(tmp_path):
    path = tmp_path / "a.kvt"
    request = Request("demo", str(path), new_tokens=1, recompute="off", paused=True)
    driven = Driven(request)
    with driven.session as session:
        driven.until_paused(1, 0)
        session.send("choose", 17)
        driven.to_the_end()
    trace = open_trace(path)
    assert len(trace) == 1
    assert trace.chosen(0) == 17
    assert trace.ending.reason == "length"


def test_a_stop_in_a_pause_closes_the_trace(tmp_path):
    path = tmp_path / "a.kvt"
    driven = Driven(Request("demo", str(path), paused=True, recompute="off"))
    driven.until_paused(1, 0)
    driven.session.close()
    assert open_trace(path).ending.text == "stopped by the user"
    assert driven.session.ending.reason == "stopped"
    assert is_gone(driven.session.pid)


def test_a_trace_is_where_it_was_asked_for_wherever_the_models_code_goes(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = tmp_path / "goes.py"
    script.write_text(f"import os\nos.chdir({str(elsewhere)!r})\n{SLOW_MODEL}")
    monkeypatch.chdir(tmp_path)
    driven = Driven(Request(f"{script}:make", "a.kvt", "hello", new_tokens=3, ways="chunks"))
    driven.to_the_end()
    assert driven.events[-1] == Ended("length", "3 new tokens, as asked for", "a.kvt")
    tried = [event.path for event in driven.events if isinstance(event, Tried)]
    assert tried == ["a.kvt", "a-chunks.kvt"]
    assert sorted(path.name for path in tmp_path.glob("*.kvt")) == ["a-chunks.kvt", "a.kvt"]
    assert not any(elsewhere.iterdir())


def test_code_that_forks_is_recorded_once(script, tmp_path):
    path = tmp_path / "a.kvt"
    driven = Driven(Request(f"{script}:forked", str(path), "hello", new_tokens=2, recompute="off"))
    driven.to_the_end()
    driven.session.close()
    assert not [event for event in driven.events if isinstance(event, Failed)]
    assert len(open_trace(path)) == 2


def test_a_model_without_attention_is_told_in_one_sentence(tmp_path):
    path = tmp_path / "a.kvt"
    spec = "kvtrace_fixtures.custom.recurrent:build"
    driven = Driven(Request(spec, str(path), "hello", new_tokens=2, recompute="off"))
    driven.to_the_end()
    driven.session.close()
    said = [event.text for event in driven.events if isinstance(event, Said)]
    assert said.count(NO_ATTENTION) == 1


OF_A_REPOSITORY = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class StartConfig(PretrainedConfig):
    model_type = "start"


class StartLM(PreTrainedModel):
    config_class = StartConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed, self.mix, self.head = nn.Embedding(256, 8), nn.Linear(8, 24), nn.Linear(8, 256)
        self.post_init()

    def forward(self, input_ids, start_pos=0):
        if start_pos == 0:
            self.rows = torch.zeros(2, 1, 64, 8)
        end = start_pos + input_ids.shape[1]
        q, k, v = self.mix(self.embed(input_ids)).chunk(3, -1)
        self.rows[0, :, start_pos:end], self.rows[1, :, start_pos:end] = k, v
        hidden = torch.ones(end - start_pos, end).triu(start_pos + 1).bool()
        scores = (q @ self.rows[0, :, :end].mT / 8**0.5).masked_fill(hidden, -torch.inf)
        return self.head(scores.softmax(-1) @ self.rows[1, :, :end])
"""


def test_a_repositorys_model_that_is_not_called_as_transformers_are_is_called_as_it_asks(tmp_path):
    (tmp_path / "modeling_start.py").write_text(OF_A_REPOSITORY)
    names = {"AutoConfig": "StartConfig", "AutoModelForCausalLM": "StartLM"}
    mapped = {name: f"modeling_start.{own}" for name, own in names.items()}
    config = {"model_type": "start", "vocab_size": 256, "auto_map": mapped}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    sizes = {"embed.weight": (256, 8), "mix.weight": (24, 8), "head.weight": (256, 8)}
    sizes |= {"mix.bias": (24,), "head.bias": (256,)}
    weights = {name: torch.randn(size) for name, size in sizes.items()}
    save_file(weights, tmp_path / "model.safetensors")
    asked = Request(str(tmp_path), str(tmp_path / "a.kvt"), "hello", new_tokens=4)
    driven = Driven(replace(asked, trust_remote_code=True))
    with driven.session:
        driven.to_the_end()
    said = [event.text for event in driven.events if isinstance(event, Said)]
    assert any("start_pos=start" in text for text in said), driven.events
    trace = open_trace(tmp_path / "a.kvt")
    assert [step.new for step in trace] == [5, 1, 1, 1]
    assert check(trace).verdict == EQUAL
