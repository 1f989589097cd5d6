"""What became of cached rows, from the keys and values of successive steps alone."""

import pytest
import torch

from builders.custom_drives import build, ids, through_the_cache
from kvtrace.record.flow import FlowWatch, RowFollower
from kvtrace.record.flow.rows import UNWRITTEN, hashes

GENERATOR = torch.Generator().manual_seed(0)


def rows(count, sequences=1):
    """Random keys and values, [sequences, 2, count, 4]."""
    shape = (sequences, 2, count, 4)
    return torch.randn(shape, generator=GENERATOR), torch.randn(shape, generator=GENERATOR)


def joined(first, second):
    return tuple(torch.cat(pair, 2) for pair in zip(first, second, strict=True))


def picked(pair, slots):
    return tuple(x[:, :, slots] for x in pair)


def test_rows_that_are_appended_get_new_cells_and_the_others_keep_theirs():
    follower, prompt = RowFollower(), rows(3)
    first = follower.step(*prompt)
    second = follower.step(*joined(prompt, rows(1)))
    assert (first.cells, first.first_cell, first.rows) == (((0, 1, 2),), 0, 3)
    assert (second.cells, second.first_cell, second.written) == (((0, 1, 2, 3),), 3, ((3,),))
    assert (second.changed, second.moved, second.gone) == (((),), ((),), ((),))


def test_sequences_write_their_cells_one_after_the_other():
    follower, prompt = RowFollower(), rows(2, sequences=2)
    assert follower.step(*prompt).cells == ((0, 1), (2, 3))
    assert follower.step(*joined(prompt, rows(1, sequences=2))).cells == ((0, 1, 4), (2, 3, 5))


def test_evicted_rows_are_gone_and_the_rest_moves():
    follower, prompt = RowFollower(), rows(4)
    follower.step(*prompt)
    step = follower.step(*joined(picked(prompt, [2, 3]), rows(1)))
    assert step.cells == ((2, 3, 4),)
    assert step.moved == (((2, 0), (3, 1)),)
    assert step.gone == ((0, 1),)
    assert step.rows == 1


def test_a_ring_overwrites_one_slot():
    follower, (keys, values) = RowFollower(), rows(4)
    follower.step(keys, values)
    new = rows(1)
    keys, values = keys.clone(), values.clone()
    keys[:, :, 1:2], values[:, :, 1:2] = new
    step = follower.step(keys, values)
    assert step.cells == ((0, 4, 2, 3),)
    assert (step.changed, step.gone) == (((1,),), ((1,),))
    assert (step.keys_only, step.rotated) == (False, False)


def test_slots_nobody_sees_are_unwritten():
    follower, (keys, values) = RowFollower(), rows(6)
    visible = torch.zeros(1, 1, 2, 6, dtype=torch.bool)
    visible[..., 0, :1], visible[..., 1, :2] = True, True
    step = follower.step(keys, values, visible)
    assert step.cells == ((0, 1, UNWRITTEN, UNWRITTEN, UNWRITTEN, UNWRITTEN),)
    assert step.written == ((0, 1),)


def test_a_row_that_was_seen_once_stays_though_a_window_hides_it():
    follower, (keys, values) = RowFollower(), rows(3)
    follower.step(keys, values, torch.tensor([True, True, False]).view(1, 1, 1, 3))
    step = follower.step(keys, values, torch.tensor([False, True, True]).view(1, 1, 1, 3))
    assert step.cells == ((0, 1, 2),)
    assert step.written == ((2,),)


def test_padding_hides_a_slot_in_one_sequence_only():
    follower, (keys, values) = RowFollower(), rows(2, sequences=2)
    visible = torch.tensor([[True, True], [False, True]]).view(2, 1, 1, 2)
    assert follower.step(keys, values, visible).cells == ((0, 1), (2, 3))


def test_repeated_tokens_with_equal_rows_keep_their_slots():
    follower = RowFollower()
    one = rows(1)
    prompt = joined(joined(one, one), one)
    follower.step(*prompt)
    step = follower.step(*joined(prompt, one))
    assert step.cells == ((0, 1, 2, 3),)
    assert step.moved == ((),)


def test_beams_that_change_places_take_each_others_rows():
    follower, (keys, values) = RowFollower(), rows(3, sequences=2)
    follower.step(keys, values)
    step = follower.step(keys[[1, 1]], values[[1, 1]])
    assert step.taken == (1, 1)
    assert step.cells == ((3, 4, 5), (3, 4, 5))
    assert step.rows == 0


def test_every_sequence_writes_as_many_rows_as_the_one_that_writes_most():
    follower, (keys, values) = RowFollower(), rows(3, sequences=2)
    follower.step(keys, values)
    keys = keys.clone()
    keys[1, :, 0] += 1
    step = follower.step(keys, values)
    assert step.written == ((2,), (0,))
    assert step.cells == ((0, 1, 6), (7, 4, 5))


def turned(keys, angle):
    """Half-split pairs rotated by an angle."""
    a, b = keys[..., :2], keys[..., 2:]
    cos, sin = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def test_keys_rotated_in_place_are_told_from_keys_that_changed():
    keys, values = rows(4)
    follower = RowFollower()
    follower.step(keys, values)
    step = follower.step(turned(keys, 0.3), values)
    assert (step.keys_only, step.rotated, step.changed) == (True, True, ((0, 1, 2, 3),))
    step = follower.step(keys * 2, values)
    assert (step.keys_only, step.rotated) == (True, False)
    step = follower.step(keys * 2, values + 1)
    assert (step.keys_only, step.rotated) == (False, False)


def test_a_new_text_knows_nothing_of_the_one_before():
    follower, prompt = RowFollower(), rows(2)
    follower.step(*prompt)
    follower.forget()
    step = follower.step(*prompt)
    assert (step.cells, step.first_cell) == (((2, 3),), 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_changed_bit_changes_the_hash(dtype):
    keys = rows(3)[0].to(dtype)
    changed = keys.clone()
    changed[0, 1, 2, 3] = torch.nextafter(changed[0, 1, 2, 3].float(), torch.tensor(9e9)).to(dtype)
    if torch.equal(changed, keys):  # too small a step for a half
        changed[0, 1, 2, 3] *= 1.01
    same = hashes(keys) == hashes(changed)
    assert same.tolist() == [[True, True, False]]


def followed(style, prompt=6, total=14):
    """The row steps of the first layer of a custom model, taken while it runs."""
    model, follower, steps, sites = build(style), RowFollower(), [], []

    def sink(call):
        sites.append((call.module, call.call))
        if sites[-1] == sites[0]:
            steps.append(follower.step(call.keys, call.values, call.visible))

    with FlowWatch(model, sink=sink):
        through_the_cache(style, model, ids(total), prompt)
    return steps


@pytest.mark.parametrize(
    "style",
    [
        "tuple_cat",
        "buffers_start_pos",
        "index_copy",
        "gqa_interleave",
        "alibi",
        "latent_mla",
        "hooked_dict",
        "sinks_prealloc",
        "unrotated_keys",
        "plain_functions",
    ],
)
def test_the_cache_of_a_custom_model_grows_by_one_row_a_step(style):
    steps = followed(style)
    assert [step.rows for step in steps] == [6] + [1] * 8
    live = [[c for c in step.cells[0] if c != UNWRITTEN] for step in steps]
    assert live == [list(range(n)) for n in range(6, 15)]
    assert not any(step.gone[0] for step in steps[1:])


def test_the_ring_of_a_custom_model_overwrites_from_the_eighth_token_on():
    steps = followed("ring_window")
    assert steps[0].rows == 6
    assert [step.changed[0] for step in steps[3:]] == [(n % 8,) for n in range(8, 14)]
    assert steps[-1].cells == ((8, 9, 10, 11, 12, 13, 6, 7),)


def test_a_full_window_of_unrotated_keys_moves_and_turns_every_row():
    steps = followed("unrotated_keys", prompt=22, total=27)
    assert [step.rows for step in steps[:3]] == [22, 1, 1]
    for step in steps[3:]:
        assert (step.keys_only, step.rotated) == (True, True)
        assert step.rows == 24
