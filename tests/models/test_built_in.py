"""The built-in models do what their cards claim, on stories that nobody has seen."""

import re

import pytest

from kvtrace_fixtures import BUILT_IN

FRESH_SEED, STORIES = 4242, 40


@pytest.fixture(scope="module", params=list(BUILT_IN))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def measured(name):
    from kvtrace_fixtures.measure import measure

    return measure(name, STORIES, FRESH_SEED)


@pytest.fixture
def card(name):
    return (BUILT_IN[name].directory / "README.md").read_text()


def claimed(card: str, row: str) -> float:
    found = re.search(rf"^\| {row} \| ([\d.]+)", card, re.M)
    assert found, row
    return float(found[1])


def test_looked_up_names_are_right_as_often_as_claimed(card, measured):
    share = claimed(card, "looked-up names and verbs that are right") / 100
    assert share >= 0.95
    assert measured.right >= share - 0.03
    assert measured.answers > 2 * STORIES


def test_the_loss_is_what_is_claimed(card, measured):
    assert measured.loss == pytest.approx(claimed(card, "loss, nats per token"), abs=0.05)


def test_the_heads_that_find_the_answer_are_those_claimed(card, measured):
    heads = re.findall(r"layer (\d+), head (\d+): .* \| ([\d.]+)", card)
    assert heads
    assert float(heads[0][2]) > 0.5
    for layer, head, weight in heads:
        assert float(measured.weights[int(layer), int(head)]) == pytest.approx(
            float(weight), abs=0.05
        )


def test_the_story_goes_on_with_the_name_that_was_looked_up(name, card):
    from kvtrace_fixtures.measure import continuation

    told = continuation(name, BUILT_IN[name].prompt)
    assert told.startswith(" Tom drew.")
    assert told.endswith("Then they all go home.")
    assert f"Continuation: “{told}”" in card
    # the same story with another name there: nothing but the earlier text tells which
    other = BUILT_IN[name].prompt.replace("the map Tom drew", "the map Hugo sold")
    assert continuation(name, other).startswith(" Hugo sold.")


def test_weights_are_small_enough_to_ship(name):
    assert (BUILT_IN[name].directory / "model.safetensors").stat().st_size < 6_000_000


def test_the_head_that_is_shown_first_finds_the_name_in_the_demo_story(name):
    import torch

    from kvtrace_fixtures.measure import load

    model, encoder = load(name)
    ids = encoder.tokenizer(BUILT_IN[name].prompt)["input_ids"]
    layer, head = BUILT_IN[name].finder
    with torch.no_grad():
        weights = model(torch.tensor([ids]), output_attentions=True).attentions[layer][0, head, -1]
    assert encoder.tokenizer.decode(ids[int(weights.argmax())]) == " Tom"
    assert float(weights.max()) > 0.9
