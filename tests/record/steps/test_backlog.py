"""Steps may wait for company; what is written then is what each would say alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.files.reading.frames import FrameFile
from kvtrace.record.steps import backlog
from kvtrace.record.steps.backlog import MOST

Run = Callable[[Any], None]

_FOREVER = 10**15
_PATIENCE_S = 300.0
_TIMES = {"elapsed_ns", "recorder_ns"}
_INDEX = 6


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, steps wait for each other."""
    monkeypatch.setattr(backlog, "LONGEST_NS", _FOREVER)


def _prompt(sequences: int = 1) -> torch.Tensor:
    return torch.randint(3, 60, (sequences, 7), generator=torch.Generator().manual_seed(4))


def _greedy(model: Any) -> None:
    model.generate(_prompt(), max_new_tokens=21, min_new_tokens=21, do_sample=False)


def _padded(model: Any) -> None:
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    model.generate(_prompt(2), attention_mask=mask, max_new_tokens=9, min_new_tokens=9)


def _beams(model: Any) -> None:
    model.generate(_prompt(), max_new_tokens=9, min_new_tokens=9, num_beams=2, do_sample=False)


def _two_caches(model: Any) -> None:
    caches, ids = [DynamicCache(), DynamicCache()], _prompt()
    for step in range(24):
        cache = caches[step // 3 % 2]
        ids = model(ids, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1)[:, None]


def _edited(model: Any) -> None:
    cache, ids = DynamicCache(), _prompt()
    for step in range(12):
        out = model(ids, past_key_values=cache, use_cache=True)
        ids = out.logits[:, -1].argmax(-1)[:, None].clone()
        out.logits.zero_()  # as samplers do that mask in place
        if step == 6:
            cache.layers[0].keys.mul_(1.5)
        if step == 9:
            cache.crop(-4)


def _infinite(model: Any) -> None:
    cache, ids = DynamicCache(), _prompt()
    weight = next(one for name, one in model.named_parameters() if "emb" in name or "wte" in name)
    with torch.no_grad():
        for step in range(9):
            model(ids, past_key_values=cache, use_cache=True)
            ids = torch.tensor([[step + 3]])
            weight[7] = float("nan")


_RUNS = [_greedy, _padded, _beams, _two_caches, _edited, _infinite]


def _record(model: nn.Module, path: Path, run: Run, **options: Any) -> Path:
    torch.manual_seed(0)
    with torch.no_grad(), kvtrace.record(model, path, recompute="off", **options):
        run(model)
    return path


def _frames(path: Path) -> list[tuple[int, Any, bytes]]:
    """(kind, JSON, payload) of each frame, without times."""
    file, offset, found = FrameFile(path), 64, []
    while offset < file.size():
        frame = file.frame(offset)
        fields = json.loads(frame.json)
        if frame.head.kind != _INDEX:
            payload = file.read(frame.payload, frame.head.payload_bytes)
            fields = {name: value for name, value in fields.items() if name not in _TIMES}
            found.append((frame.head.kind, fields, payload))
        offset = frame.end
    return found


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("run", _RUNS)
def test_steps_written_together_are_to_the_last_bit_those_written_alone(
    name: str, run: Run, tmp_path: Path
) -> None:
    together = _record(tiny_model(name), tmp_path / "together.kvt", run)
    alone = _record(tiny_model(name), tmp_path / "alone.kvt", run, on_step=lambda _: None)
    for one, other in zip(_frames(together), _frames(alone), strict=True):
        assert one == other


def _decode(model: Any, steps: int) -> None:
    cache, ids = DynamicCache(), _prompt()
    for _ in range(steps):
        ids = model(ids, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)


@pytest.mark.usefixtures("unhurried")
def test_the_first_steps_are_written_at_once_and_then_many_together(tmp_path: Path) -> None:
    model, path, written = tiny_model("gpt2"), tmp_path / "a.kvt", []
    with torch.no_grad(), kvtrace.record(model, path, recompute="off"):
        model.register_forward_pre_hook(
            lambda *_: written.append(len(kvtrace.open(path))), prepend=False
        )
        _decode(model, 2 * MOST + 4)
    # when a forward begins, the step before is known whole: two are like none before
    expected = [0, 1, 2, *[2] * (MOST - 1), *[2 + MOST] * MOST, *[2 + 2 * MOST] * 2]
    assert written == expected
    assert len(kvtrace.open(path)) == 2 * MOST + 4


@pytest.mark.usefixtures("unhurried")
def test_nothing_waits_once_generate_has_returned(tmp_path: Path) -> None:
    model, path = tiny_model("gpt2"), tmp_path / "a.kvt"
    with kvtrace.record(model, path, recompute="off"):
        _greedy(model)
        trace = kvtrace.open(path)
    assert len(trace) == 21
    assert trace.chosen(20) is not None


def test_what_waits_is_written_though_the_model_is_called_no_more(tmp_path: Path) -> None:
    model, path, enough = tiny_model("gpt2"), tmp_path / "a.kvt", threading.Event()
    with torch.no_grad(), kvtrace.record(model, path, recompute="off"):
        _decode(model, 9)
        until = monotonic() + _PATIENCE_S
        # the last one waits for its token, as ever
        while len(kvtrace.open(path)) < 8 and monotonic() < until:
            enough.wait(0.05)
        assert len(kvtrace.open(path)) == 8
    assert len(kvtrace.open(path)) == 9


@pytest.mark.usefixtures("unhurried")
def test_steps_that_wait_are_written_when_the_loop_raises(tmp_path: Path) -> None:
    model, path = tiny_model("gpt2"), tmp_path / "a.kvt"

    def fail() -> None:
        with torch.no_grad(), kvtrace.record(model, path, recompute="off"):
            _decode(model, 7)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(kvtrace.open(path)) == 7


def test_nobody_looks_at_the_time_after_a_recording(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    model = tiny_model("gpt2")
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        _decode(model, 6)
    assert set(threading.enumerate()) <= before
