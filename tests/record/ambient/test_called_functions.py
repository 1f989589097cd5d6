"""Code without a module: its function is called again with the whole text, and nothing is left."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch

import kvtrace
from kvtrace.record.lanes.as_it_was.outside import Outside

WIDTH, HEADS, VOCAB = 32, 4, 50
PROMPT = [5, 3, 8, 1, 30, 22, 9]


def weights():
    torch.manual_seed(0)
    shapes = {"wte": (VOCAB, WIDTH), "wpe": (64, WIDTH), "qkv": (WIDTH, 3 * WIDTH)}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def attended(x, qkv, past):
    q, k, v = (x @ qkv).chunk(3, -1)
    if past is not None:
        k, v = torch.cat((past[0], k)), torch.cat((past[1], v))
    heads = [rows.view(-1, HEADS, WIDTH // HEADS).transpose(0, 1) for rows in (q, k, v)]
    scores = heads[0] @ heads[1].transpose(1, 2) / math.sqrt(WIDTH // HEADS)
    hidden = torch.ones(q.shape[0], k.shape[0]).triu(1 + k.shape[0] - q.shape[0]).bool()
    found = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ heads[2]
    return x + found.transpose(0, 1).reshape(x.shape), (k, v)


def forward(inputs, wte, wpe, qkv, past=None, off=0):
    """Is given all tokens as a list, and takes the last one where there is a cache."""
    places = wpe[range(len(inputs))] if past is None else wpe[[len(inputs) - 1 + off]]
    x = wte[inputs if past is None else [inputs[-1]]] + places
    x, past = attended(x, qkv, past)
    return x @ wte.T, past


def through_arguments(steps, off=0):
    inputs, past, made = list(PROMPT), None, weights()
    for _ in range(steps):
        logits, past = forward(inputs, **made, past=past, off=off)
        inputs.append(int(logits[-1].argmax()))
    return inputs


KEPT, COUNT = {}, 0


def remembering(ids):
    """Keeps its cache, and how many tokens there were, in the file."""
    global COUNT
    x = TABLES["wte"][ids] + TABLES["wpe"][COUNT : COUNT + len(ids)]
    COUNT += len(ids)
    x, KEPT["past"] = attended(x, TABLES["qkv"], KEPT.get("past"))
    return x @ TABLES["wte"].T


def through_globals(steps):
    global COUNT
    COUNT = 0
    KEPT.clear()
    ids = torch.tensor(PROMPT)
    for _ in range(steps):
        ids = remembering(ids)[-1:].argmax(-1)


TABLES = weights()


class Plain:
    """A class of no library, with buffers and positions of its own."""

    def __init__(self):
        self.weights = weights()
        self.keys, self.values = torch.zeros(2, 32, WIDTH)

    def forward(self, tokens, start_pos):
        end = start_pos + tokens.shape[1]
        x = self.weights["wte"][tokens[0]] + self.weights["wpe"][start_pos:end]
        past = None if not start_pos else (self.keys[:start_pos], self.values[:start_pos])
        x, (k, v) = attended(x, self.weights["qkv"], past)
        self.keys[:end], self.values[:end] = k, v
        return (x @ self.weights["wte"].T)[None]

    def generate(self, prompt, steps):
        now, past = prompt, 0
        for _ in range(steps):
            logits = self.forward(now, past)
            past, now = past + now.shape[1], logits[:, -1:].argmax(-1)


def differences(path):
    """Largest difference of each step, over the largest number of the recomputed lane."""
    trace = kvtrace.open(path)
    found = [trace.compared(number) for number in trace.numbers]
    return trace, [float(np.nanmax(one.max_abs / one.reference_max)) for one in found]


def test_a_function_over_a_tree_of_weights_is_called_again(tmp_path):
    expected = through_arguments(5)
    with kvtrace.record(tmp_path / "a.kvt"):
        assert through_arguments(5) == expected
    trace, apart = differences(tmp_path / "a.kvt")
    assert max(apart) < 1e-5
    assert [one.name for one in trace.meta.lanes] == ["recomputed"]
    kept = [[run.count for run in trace.cache_step(n, 0).kept[0]] for n in trace.numbers]
    assert [sum(counts) for counts in kept] == [7, 8, 9, 10, 11]


def test_a_single_token_is_not_taken_for_its_position(tmp_path):
    tokens = through_arguments(5)
    with kvtrace.record(tmp_path / "a.kvt"):
        through_arguments(5)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [one for step in trace for one in step.tokens[0]] == tokens[:-1]


def test_what_such_a_function_does_wrong_is_seen(tmp_path):
    with kvtrace.record(tmp_path / "a.kvt"):
        through_arguments(5, off=-1)
    _, apart = differences(tmp_path / "a.kvt")
    assert apart[0] < 1e-5
    assert min(apart[1:]) > 1e-2


def test_globals_are_what_they_were_before_the_first_call_and_afterwards(tmp_path):
    with kvtrace.record(tmp_path / "a.kvt"):
        through_globals(5)
        keys = KEPT["past"][0]
    trace, apart = differences(tmp_path / "a.kvt")
    assert max(apart) < 1e-5
    assert len(PROMPT) + 4 == COUNT
    assert KEPT["past"][0] is keys
    assert trace.cache_layer(0).where.startswith("global KEPT['past'][0] [rows, 32]")


def test_a_referee_needs_weights_that_it_is_given(tmp_path):
    with kvtrace.record(tmp_path / "given.kvt", referee=True):
        through_arguments(3)
    lanes = kvtrace.open(tmp_path / "given.kvt").meta.lanes
    assert [one.name for one in lanes] == ["recomputed", "referee"]
    with kvtrace.record(tmp_path / "elsewhere.kvt", referee=True):
        through_globals(3)
    trace = kvtrace.open(tmp_path / "elsewhere.kvt")
    assert [one.name for one in trace.meta.lanes] == ["recomputed"]
    assert [note.text for note in trace.notes if "referee" in note.text] == [
        "could not compute the referee lane: with the tokens alone: its weights lie outside of "
        "what it is given, and stay as they are"
    ]


def test_a_method_of_an_object_of_no_library_is_called_again(tmp_path):
    model = Plain()
    with kvtrace.record(tmp_path / "a.kvt"):
        model.generate(torch.tensor([PROMPT]), 5)
    keys = model.keys.clone()
    _, apart = differences(tmp_path / "a.kvt")
    assert max(apart) < 1e-5
    assert torch.equal(model.keys, keys)


@pytest.fixture
def frozen():
    """A program that has frozen what it loaded, as servers do."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen")
def test_a_method_is_called_again_where_the_program_froze_what_it_loaded(tmp_path):
    model = Plain()
    with kvtrace.record(tmp_path / "a.kvt"):
        model.generate(torch.tensor([PROMPT]), 5)
    _, apart = differences(tmp_path / "a.kvt")
    assert max(apart) < 1e-5


def test_every_step_can_be_compared_at_once(tmp_path):
    with kvtrace.record(tmp_path / "a.kvt", recompute="each"):
        through_arguments(4)
    _, apart = differences(tmp_path / "a.kvt")
    assert max(apart) < 1e-5


def test_steps_of_a_loop_without_a_function_are_recorded_alone(tmp_path):
    made, ids, past = weights(), torch.tensor(PROMPT), None
    with kvtrace.record(tmp_path / "a.kvt"):
        for _ in range(3):
            x, past = attended(made["wte"][ids], made["qkv"], past)
            ids = (x @ made["wte"].T)[-1:].argmax(-1)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert len(trace) == 3
    assert not trace.meta.lanes
    assert any("no module that could be called again" in one.text for one in trace.notes)


def test_what_lies_beside_very_much_data_is_put_back_all_the_same():
    data = [list(range(500)) for _ in range(500)]
    space = {"__name__": "mine", "data": data, "kept": {"layers": [{}]}}
    outside = Outside.of_file(space)
    space["kept"]["layers"][0]["k"] = 1
    data[0].append(7)
    with outside.as_before():
        assert space["kept"] == {"layers": [{}]}
        assert data[0] == list(range(500))
    assert space["kept"] == {"layers": [{"k": 1}]}
    assert data[0][-1] == 7


def test_look_ups_within_vmap_go_on_as_they_would_alone(tmp_path):
    def look_up(ids, table):
        return table[ids]

    tables, ids = torch.randn(3, VOCAB, WIDTH), torch.tensor([[5, 3], [8, 1], [2, 2]])
    expected = torch.stack([table[row] for table, row in zip(tables, ids, strict=True)])
    with kvtrace.record(tmp_path / "a.kvt"):
        both = torch.func.vmap(look_up)(ids, tables)
        one = torch.func.vmap(look_up, in_dims=(None, 0))(ids[0], tables)
    assert torch.equal(both, expected)
    assert torch.equal(one[0], expected[0])


def test_a_model_that_is_run_by_vmap_is_named_and_gives_what_it_would_alone(tmp_path):
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(VOCAB, WIDTH)

        def forward(self, ids):
            x = self.table(ids)
            return (x @ x.mT).softmax(-1) @ x @ self.table.weight.T

    models = [Small() for _ in range(2)]
    ids = torch.tensor([[5, 3, 8]])
    stacked, _ = torch.func.stack_module_state(models)

    def run(weights):
        return torch.func.functional_call(models[0], weights, (ids,))

    with torch.no_grad():
        expected = torch.func.vmap(run)(stacked)
        with kvtrace.record(tmp_path / "a.kvt") as recording:
            assert torch.equal(torch.func.vmap(run)(stacked), expected)
    assert [one.partition(" (")[0] for one in recording.report.said] == ["Small: torch.func"]


def test_an_embedding_of_stacked_weights_goes_on_as_it_would_alone(tmp_path):
    table, ids = torch.nn.Embedding(VOCAB, WIDTH), torch.tensor([[5, 3]])
    stacked = {"weight": torch.randn(3, VOCAB, WIDTH)}

    def look_up(weights):
        return torch.func.functional_call(table, weights, (ids,))

    with kvtrace.record(tmp_path / "a.kvt"):
        found = torch.func.vmap(look_up)(stacked)
    assert torch.equal(found, stacked["weight"][:, ids])
