"""What became of cached rows, from the keys and values of successive steps alone."""

import torch

from kvtrace.record.flow.rows.follower import GivenRows, RowFollower
from kvtrace.record.flow.rows.slots import UNWRITTEN
from kvtrace.record.match import PARTS

GENERATOR = torch.Generator().manual_seed(0)


def rows(count, sequences=1, dim=4):
    """Random keys and values, [sequences, 2, count, dim]."""
    shape = (sequences, 2, count, dim)
    return torch.randn(shape, generator=GENERATOR), torch.randn(shape, generator=GENERATOR)


def joined(first, second):
    return tuple(torch.cat(pair, 2) for pair in zip(first, second, strict=True))


def picked(pair, slots):
    return tuple(x[:, :, slots] for x in pair)


class Site:
    """One site: a step is given rows, how many tokens came in, and what they see."""

    def __init__(self):
        self.follower, self.number = RowFollower(), 0

    def step(self, pair, new=1, visible=None, **more):
        given = GivenRows(*pair, new, visible, number=self.number, **more)
        self.number += 1
        return self.follower.step(given)


def sees(*slots, of, new=1):
    """A mask of [1, 1, new, of]: every query sees these slots."""
    visible = torch.zeros(1, 1, new, of, dtype=torch.bool)
    visible[..., list(slots)] = True
    return visible


def test_rows_that_are_appended_get_new_cells_and_the_others_keep_theirs():
    site, prompt = Site(), rows(3)
    first = site.step(prompt, 3)
    second = site.step(joined(prompt, rows(1)))
    assert (first.cells.tolist(), first.first_cell, first.rows) == ([[0, 1, 2]], 0, 3)
    assert (first.parent, first.computed, second.parent, second.computed) == (None, True, 0, False)
    assert (second.cells.tolist(), second.first_cell) == ([[0, 1, 2, 3]], 3)
    assert (second.written.tolist(), second.positions.tolist()) == ([[3]], [[0, 1, 2, 3]])
    assert (second.before, second.gone, second.again) == (3, 0, 0)


def test_sequences_write_their_cells_one_after_the_other():
    site, prompt = Site(), rows(2, sequences=2)
    assert site.step(prompt, 2).cells.tolist() == [[0, 1], [2, 3]]
    step = site.step(joined(prompt, rows(1, sequences=2)))
    assert step.cells.tolist() == [[0, 1, 4], [2, 3, 5]]


def test_evicted_rows_are_gone_and_the_rest_moves():
    site, prompt = Site(), rows(4)
    site.step(prompt, 4)
    step = site.step(joined(picked(prompt, [2, 3]), rows(1)))
    assert step.cells.tolist() == [[2, 3, 4]]
    assert step.origin.tolist() == [[2, 3, -1]]
    assert step.positions.tolist() == [[2, 3, 4]]
    assert (step.gone, step.cropped, step.rows) == (2, 0, 1)


def test_a_window_of_equal_rows_moves_as_a_whole():
    site = Site()
    a, b, c, d = (rows(1) for _ in range(4))
    full = joined(joined(joined(a, b), a), c)
    site.step(full, 4)
    step = site.step(joined(joined(joined(b, a), c), d))
    assert step.positions.tolist() == [[1, 2, 3, 4]]
    assert step.cells.tolist() == [[1, 2, 3, 4]]


def test_rows_taken_off_the_end_are_cropped_and_positions_go_back():
    site, prompt = Site(), rows(5)
    site.step(prompt, 5)
    step = site.step(joined(picked(prompt, [0, 1, 2]), rows(1)))
    assert step.cells.tolist() == [[0, 1, 2, 5]]
    assert (step.cropped, step.gone, step.at.tolist()) == (2, 2, [3])
    assert step.positions.tolist() == [[0, 1, 2, 3]]


def test_a_row_that_was_written_over_is_no_crop():
    site, buffer = Site(), rows(8)
    site.step(buffer, 3, sees(0, 1, 2, of=8, new=3))
    keys, values = (x.clone() for x in buffer)
    keys[:, :, 2:3], values[:, :, 2:3] = rows(1)
    step = site.step((keys, values), 1, sees(0, 1, 2, of=8))
    assert (step.cropped, step.at.tolist()) == (0, [3])
    assert step.positions[:, step.slots].tolist() == [[0, 1, 3]]


def test_a_ring_overwrites_one_slot():
    site, (keys, values) = Site(), rows(4)
    site.step((keys, values), 4)
    new = rows(1)
    keys, values = keys.clone(), values.clone()
    keys[:, :, 0:1], values[:, :, 0:1] = new
    step = site.step((keys, values))
    assert step.cells.tolist() == [[4, 1, 2, 3]]
    assert (step.positions.tolist(), step.gone, step.again) == ([[4, 1, 2, 3]], 1, 0)


def test_equal_values_in_other_slots_give_a_ring_no_rows_of_another_sequence():
    site, (keys, values), (key, value) = Site(), rows(6, sequences=2), rows(1, sequences=2)
    values[1, :, :2] = values[0, :, 4:]  # the same two tokens, where a ring is to hold them
    site.step((keys, values), 6)
    ring = (
        torch.cat([x[:, :, [4, 5]], y, x[:, :, [3]]], 2) for x, y in ((keys, key), (values, value))
    )
    step = site.step(tuple(ring))
    assert step.taken.tolist() == [0, 1]
    assert step.positions.tolist() == [[4, 5, 6, 3], [4, 5, 6, 3]]


def test_a_chunk_that_goes_around_the_ring_keeps_its_order():
    site, buffer = Site(), rows(6)
    site.step(buffer, 5, sees(*range(5), of=6, new=5))
    keys, values = (x.clone() for x in buffer)
    more = rows(3)
    for n, slot in enumerate((5, 0, 1)):
        keys[:, :, slot], values[:, :, slot] = more[0][:, :, n], more[1][:, :, n]
    step = site.step((keys, values), 3)
    assert step.positions.tolist() == [[6, 7, 2, 3, 4, 5]]


def test_slots_nobody_sees_are_unwritten():
    site, buffer = Site(), rows(6)
    visible = torch.zeros(1, 1, 2, 6, dtype=torch.bool)
    visible[..., 0, :1], visible[..., 1, :2] = True, True
    step = site.step(buffer, 2, visible)
    assert step.cells.tolist() == [[0, 1, *[UNWRITTEN] * 4]]
    assert (step.written.tolist(), step.slots.tolist(), step.whole) == ([[0, 1]], [0, 1], False)


def test_a_row_that_was_seen_once_stays_though_a_window_hides_it():
    site, buffer = Site(), rows(3)
    site.step(picked(buffer, [0, 1]), 2)
    step = site.step(buffer, 1, sees(1, 2, of=3))
    assert step.cells.tolist() == [[0, 1, 2]]
    assert step.written.tolist() == [[2]]


def test_a_new_row_that_its_own_query_does_not_see_is_there_all_the_same():
    site, buffer = Site(), rows(8)
    site.step(buffer, 3, sees(0, 1, 2, of=8, new=3))
    keys, values = (x.clone() for x in buffer)
    keys[:, :, 3:4], values[:, :, 3:4] = rows(1)
    step = site.step((keys, values), 1, sees(0, 1, 2, of=8))
    assert (step.written.tolist(), step.positions[0, 3]) == ([[3]], 3)


def test_a_text_whose_history_is_hidden_from_it_is_still_the_same_text():
    site, buffer = Site(), rows(8)
    site.step(buffer, 3, sees(0, 1, 2, of=8, new=3))
    keys, values = (x.clone() for x in buffer)
    keys[:, :, 3:4], values[:, :, 3:4] = rows(1)
    step = site.step((keys, values), 1, sees(3, of=8))
    assert (step.parent, step.computed, step.cells[0, :4].tolist()) == (0, False, [0, 1, 2, 3])


def test_a_step_that_does_not_see_its_own_row_goes_on_with_the_text():
    site, prompt = Site(), rows(3)
    site.step(prompt, 3, sees(0, 1, 2, of=3, new=3))
    step = site.step(joined(prompt, rows(1)), 1, sees(0, of=4))
    assert (step.parent, step.computed, step.cells.tolist()) == (0, False, [[0, 1, 2, 3]])
    assert (step.written.tolist(), step.again) == ([[3]], 0)


def test_a_text_with_the_first_token_of_the_one_before_is_a_new_one():
    site, buffer = Site(), rows(8)
    site.step(buffer, 3, sees(0, 1, 2, of=8, new=3))
    assert site.step(buffer, 1, sees(0, of=8)).parent is None


def test_a_zero_row_that_is_seen_stands_for_no_token():
    site, prompt = Site(), rows(3)
    site.step(prompt, 3)
    gap = tuple(torch.zeros(1, 2, 1, 4) for _ in range(2))
    step = site.step(joined(joined(prompt, rows(1)), gap))
    assert step.rows == 2
    assert step.positions.tolist() == [[0, 1, 2, 3, 4]]


def test_left_padding_is_hidden_and_has_negative_positions():
    site, pair = Site(), rows(4, sequences=2)
    visible = torch.ones(4, 4, dtype=torch.bool).tril()[None, None].repeat(2, 1, 1, 1)
    visible[1, :, :, :2] = False
    step = site.step(pair, 4, visible)
    assert step.cells.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert step.positions.tolist() == [[0, 1, 2, 3], [-2, -1, 0, 1]]
    step = site.step(joined(pair, rows(1, sequences=2)))
    assert step.at.tolist() == [4, 2]


def test_repeated_tokens_with_equal_rows_keep_their_slots():
    site = Site()
    one = rows(1)
    prompt = joined(joined(one, one), one)
    site.step(prompt, 3)
    step = site.step(joined(prompt, one))
    assert step.cells.tolist() == [[0, 1, 2, 3]]
    assert step.positions.tolist() == [[0, 1, 2, 3]]


def test_beams_that_change_places_take_each_others_rows():
    site, (keys, values) = Site(), rows(3, sequences=2)
    site.step((keys, values), 3)
    step = site.step(joined((keys[[1, 1]], values[[1, 1]]), rows(1, sequences=2)))
    assert step.taken.tolist() == [1, 1]
    assert step.cells.tolist() == [[3, 4, 5, 6], [3, 4, 5, 7]]


def test_every_sequence_writes_as_many_rows_as_the_one_that_writes_most():
    site, (keys, values) = Site(), rows(3, sequences=2)
    site.step((keys, values), 3)
    keys = keys.clone()
    keys[1, :, 0] += 1
    step = site.step((keys, values))
    assert step.written.tolist() == [[2], [0]]
    assert step.cells.tolist() == [[0, 1, 6], [7, 4, 5]]


def turned(keys, angle):
    """Half-split pairs rotated by an angle."""
    a, b = keys[..., :2], keys[..., 2:]
    cos, sin = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def test_keys_rotated_in_place_are_told_from_keys_that_changed():
    keys, values = rows(4)
    site = Site()
    site.step((keys, values), 4)
    step = site.step((turned(keys, 0.3), values))
    assert (step.again, step.rotated, step.positions.tolist()) == (4, True, [[0, 1, 2, 3]])
    step = site.step((keys * 2, values))
    assert (step.again, step.rotated) == (4, False)


def test_a_window_that_is_rotated_as_it_moves_keeps_its_tokens():
    keys, values = rows(4)
    site = Site()
    site.step((keys, values), 4)
    more, same = rows(1)
    step = site.step(
        (torch.cat([turned(keys[:, :, 1:], 0.3), more], 2), torch.cat([values[:, :, 1:], same], 2))
    )
    assert (step.again, step.rotated, step.gone) == (3, True, 1)
    assert step.positions.tolist() == [[1, 2, 3, 4]]


def test_a_step_that_sees_no_more_than_its_tokens_begins_a_text():
    site, prompt = Site(), rows(2)
    site.step(prompt, 2)
    step = site.step(prompt, 2)
    assert (step.parent, step.cells.tolist(), step.first_cell) == (None, [[2, 3]], 2)


def test_tokens_computed_again_with_more_keep_equal_rows():
    site, prompt = Site(), rows(2)
    site.step(prompt, 2)
    step = site.step(joined(prompt, rows(1)), 3, grown=True)
    assert (step.parent, step.computed, step.cells.tolist()) == (0, True, [[0, 1, 2]])


def test_a_text_can_be_gone_on_with_after_another():
    site, one, other = Site(), rows(3), rows(2)
    site.step(one, 3)
    site.step(other, 2)
    step = site.step(joined(one, rows(1)))
    assert (step.parent, step.cells.tolist()) == (0, [[0, 1, 2, 5]])
    step = site.step(joined(other, rows(1)))
    assert (step.parent, step.cells.tolist()) == (1, [[3, 4, 6]])


def test_a_text_read_again_goes_on_with_itself_though_its_cache_rounds_rows_as_then():
    site, prompt, more = Site(), rows(3), [rows(1) for _ in range(3)]
    kept = tuple(x.bfloat16().float() for x in prompt)
    site.step(prompt, 3)
    first = site.step(joined(kept, more[0]))
    kept = tuple(x.bfloat16().float() for x in joined(kept, more[0]))
    site.step(joined(kept, more[1]))
    site.step(prompt, 3)
    again = site.step(joined(picked(kept, slice(3)), more[2]))
    assert (first.parent, again.parent) == (0, 3)
    assert again.positions.tolist() == [[0, 1, 2, 3]]


def test_a_text_cut_back_to_the_length_of_another_is_not_taken_for_that():
    site, one, other = Site(), rows(5), rows(3)
    site.step(one, 5)
    site.step(other, 3)
    step = site.step(joined(picked(one, slice(3)), rows(1)))
    assert (step.parent, step.cells.tolist()) == (0, [[0, 1, 2, 8]])


def test_a_text_that_was_forked_can_be_gone_on_with_on_both_sides():
    site, prompt = Site(), rows(3)
    site.step(prompt, 3)
    left, right = joined(prompt, rows(1)), joined(prompt, rows(1))
    site.step(left)
    site.step(right)
    again, other = site.step(joined(left, rows(1))), site.step(joined(right, rows(1)))
    assert (again.parent, again.cells.tolist(), again.rows) == (1, [[0, 1, 2, 3, 5]], 1)
    assert (other.parent, other.cells.tolist(), other.rows) == (2, [[0, 1, 2, 4, 6]], 1)


def test_a_site_that_has_its_first_shape_again_goes_on_where_the_other_shape_left():
    first, wide = Site(), Site()
    first.step(rows(1), 1)
    wide.follower.succeed(first.follower)
    wide.number = 1
    assert wide.step(rows(3, dim=8), 2, start=1).parent == 0
    first.follower.succeed(wide.follower)
    first.number = 2
    step = first.step(rows(4), 1, start=3)
    assert (step.parent, step.before, step.at.tolist()) == (1, 3, [3])


def test_hidden_rows_of_an_earlier_text_in_the_same_buffer_do_not_count():
    site, buffer = Site(), rows(8)
    site.step(buffer, 6, sees(*range(6), of=8, new=6))
    keys, values = (x.clone() for x in buffer)
    keys[:, :, :2], values[:, :, :2] = rows(2)
    step = site.step((keys, values), 2, sees(0, 1, of=8, new=2))
    assert (step.parent, step.slots.tolist(), step.at.tolist()) == (None, [0, 1], [0])
    keys, values = keys.clone(), values.clone()
    keys[:, :, 2:3], values[:, :, 2:3] = rows(1)
    step = site.step((keys, values), 1, sees(0, 1, 2, of=8))
    assert (step.parent, step.slots.tolist(), step.at.tolist()) == (1, [0, 1, 2], [2])


def test_a_row_written_twice_stands_for_the_token_where_its_query_sees_it():
    site, prompt, new, newer = Site(), rows(4), rows(1), rows(1)
    site.step(prompt, 4)
    ring = joined(new, picked(prompt, [1, 2, 3]))
    site.step(joined(ring, new), visible=sees(1, 2, 3, 4, of=5))
    kept = joined(picked(prompt, [2, 3]), new)
    step = site.step(joined(joined(newer, kept), newer), visible=sees(1, 2, 3, 4, of=5))
    assert (step.at.tolist(), step.positions[0, 1:].tolist()) == ([5], [2, 3, 4, 5])


def test_rows_that_were_there_before_anything_was_recorded_come_first():
    step = Site().step(rows(5), 1)
    assert (step.parent, step.computed, step.at.tolist()) == (None, False, [4])
    assert step.positions.tolist() == [[0, 1, 2, 3, 4]]


def test_long_rows_are_looked_at_in_turns_and_changes_are_found_at_once():
    site, prompt = Site(), rows(600, dim=32)
    site.step(prompt, 600)
    pair = prompt
    for n in range(1, 2 * PARTS):
        pair = joined(pair, rows(1, dim=32))
        step = site.step(pair)
        assert (step.rows, step.parent) == (1, n - 1)
    keys = pair[0].clone()
    keys[:, :, 17] *= -1
    step = site.step((keys, pair[1]))
    assert step.written.tolist() == [[17]]
    keys = keys.clone()
    keys[:, 1, 30, 5] += 1
    found = [site.step((keys, pair[1])).written.tolist() for _ in range(PARTS)]
    assert [[30]] in found


def test_rows_made_anew_with_other_last_bits_keep_their_places():
    site, prompt = Site(), rows(4, sequences=2)
    site.step(prompt, 4, pads=(0, 2))
    nudged = tuple(x.clone() for x in prompt)
    for one in nudged:
        one[:, :, 2:] *= 1 + 2.0**-22
    step = site.step(joined(nudged, rows(1, sequences=2)))
    assert (step.parent, step.rows, step.again, step.gone, step.cropped) == (0, 3, 2, 0, 0)
    assert step.positions.tolist() == [[0, 1, 2, 3, 4], [-2, -1, 0, 1, 2]]
    assert step.at.tolist() == [4, 2]


def test_an_array_that_grew_by_the_tokens_lost_none_of_its_rows():
    site, prompt = Site(), rows(6)
    site.step(prompt, 6)
    changed = tuple(x.clone() for x in prompt)
    for one in changed:
        one[:, :, 3:] *= -2
    step = site.step(joined(changed, rows(1)))
    assert (step.positions.tolist(), step.at.tolist()) == ([list(range(7))], [6])
    assert step.cropped == 0
