from msgspec.structs import replace

from builders import Shape, synthetic_trace
from kvtrace.analysis.branches import branches, twigs
from kvtrace.analysis.course import single
from kvtrace.trace import CacheEvent, Run


def told(steps):
    """A trace whose steps have these (tokens, first position, order) and nothing else."""
    trace = synthetic_trace(Shape(decode=len(steps) - 1))
    for number, (tokens, first, order) in enumerate(steps):
        one = trace.step(number)
        events = (CacheEvent("reorder", (0,), (1,), (1,), order),) if order else ()
        positions = tuple(tuple(range(first, first + len(row))) for row in tokens)
        trace.source.steps[number] = replace(
            one, tokens=tokens, positions=positions, events=events, chosen=(None,) * len(tokens)
        )
    return trace


def lines(tree):
    """Each line of the drawn tree: what leads to it, and its tokens."""
    return [
        (twig.lead, [token for node in twig.nodes for token in tree.nodes[node].tokens])
        for twig in twigs(tree)
    ]


def test_a_run_that_only_grows_is_one_line():
    trace = synthetic_trace(Shape(prompt=3, decode=4))
    tree = branches(trace)
    assert single(trace)
    assert len(twigs(tree)) == 1
    assert tree.line(2, 0) == [0, 1, 2, 3, 4]


def test_sequences_are_one_branch_until_they_part():
    trace = told([
        (((1, 2), (1, 2)), 0, ()),
        (((3,), (3,)), 2, ()),
        (((4,), (5,)), 3, ()),
    ])  # fmt: skip
    tree = branches(trace)
    assert not single(trace)
    assert tree.places[1, 0] == tree.places[1, 1]
    assert lines(tree) == [("", [1, 2, 3]), ("├╴", [5]), ("", [4])]


def test_a_beam_that_took_over_another_goes_on_from_it():
    trace = told([
        (((1,), (1,)), 0, ()),
        (((2,), (3,)), 1, (0, 0)),
        (((4,), (5,)), 2, (1, 1)),
    ])  # fmt: skip
    tree = branches(trace)
    assert lines(tree) == [("", [1]), ("├╴", [2]), ("", [3]), ("├╴", [5]), ("", [4])]
    assert tree.origins[2, 0] == 1
    assert [tree.nodes[node].tokens for node in tree.line(2, 1)] == [(1,), (3,), (5,)]


def test_tokens_that_were_gone_back_on_are_rejected():
    trace = told([(((1, 2),), 0, ()), (((3, 7, 8),), 2, ()), (((4,),), 3, ())])
    tree = branches(trace)
    assert [(node.kept, node.rejected) for node in tree.nodes] == [(2, 0), (1, 2), (1, 0)]


def test_steps_that_were_taken_back_whole_are_a_branch_that_ended():
    trace = told([(((1, 2),), 0, ()), (((3,),), 2, ()), (((7,),), 3, ()), (((4,),), 2, ())])
    tree = branches(trace)
    assert lines(tree) == [("", [1, 2]), ("├╴", [4]), ("", [3, 7])]
    assert [tree.nodes[node].tokens for node in tree.line(3, 0)] == [(1, 2), (4,)]
    assert [node.rejected for node in tree.nodes] == [0, 0, 0, 0]


def test_a_text_that_shares_the_beginning_of_a_prompt_has_only_that():
    trace = told([(((1, 2, 8, 9),), 0, ()), (((5,),), 4, ()), (((3, 4),), 2, ()), (((6,),), 4, ())])
    trace.source.steps[2] = replace(trace.step(2), parent=0)
    tree = branches(trace)
    assert lines(tree) == [("", [1, 2]), ("├╴", [3, 4, 6]), ("", [8, 9, 5])]
    assert [tree.nodes[node].tokens for node in tree.line(3, 0)] == [(1, 2), (3, 4), (6,)]
    assert [tree.nodes[node].tokens for node in tree.line(0, 0)] == [(1, 2), (8, 9), (5,)]
    assert tree.nodes[tree.places[0, 0]].tokens == (8, 9)


def test_a_text_that_every_step_is_fed_anew_is_told_once():
    trace = told([(((1, 2),), 0, ()), (((1, 2, 3),), 0, ()), (((1, 2, 3, 4),), 0, ())])
    tree = branches(trace)
    assert lines(tree) == [("", [1, 2, 3, 4])]
    assert [(node.step, node.kept) for node in tree.nodes] == [(0, 2), (1, 1), (2, 1)]


def test_a_text_of_which_only_the_end_is_fed_anew_goes_on():
    trace = told([(((1, 2, 3),), 0, ()), (((2, 3, 4),), 0, ()), (((3, 4, 5),), 0, ())])
    assert lines(branches(trace)) == [("", [1, 2, 3, 4, 5])]


def test_beams_that_are_fed_anew_part_where_their_tokens_do():
    trace = told([(((1, 2),), 0, ()), (((1, 2, 3),), 0, ()), (((1, 2, 5),), 0, ())])
    assert lines(branches(trace)) == [("", [1, 2]), ("├╴", [5]), ("", [3])]


def test_a_run_that_went_back_over_single_tokens_is_not_one_line():
    trace = told([(((1, 2),), 0, ()), (((3,),), 2, ()), (((7,),), 3, ()), (((4,),), 2, ())])
    assert single(trace)  # as far as what its steps cost says
    trace.source.steps[3] = replace(trace.step(3), cost=trace.step(1).cost)
    assert not single(trace)
    assert not single(trace, since=3)


def test_steps_that_cost_no_more_than_others_may_still_go_on():
    trace = synthetic_trace(Shape(prompt=3, decode=4))
    for number in (2, 3, 4):
        trace.source.steps[number] = replace(trace.step(number), cost=trace.step(1).cost)
    assert single(trace)


def test_padding_belongs_to_no_branch():
    trace = told([(((0, 0, 9),), 0, ()), (((3,),), 1, ())])
    first = trace.step(0)
    trace.source.steps[0] = replace(first, positions=((-2, -1, 0),))
    assert branches(trace).nodes[0].tokens == (9,)


def test_two_texts_are_two_trees():
    trace = told([(((1,),), 0, ()), (((2,),), 1, ()), (((1,),), 0, ())])
    trace.source.steps[2] = replace(trace.step(2), parent=None)
    tree = branches(trace)
    assert not single(trace)
    assert lines(tree) == [("", [1, 2]), ("", [1])]
    assert tree.line(2, 0) == [2]


def test_a_batch_that_was_repeated_goes_on_from_the_row_it_repeats():
    trace = told([(((1,), (2,)), 0, ()), (((3,), (4,), (5,), (6,)), 1, ())])
    tree = branches(trace)
    assert [tree.nodes[tree.places[1, row]].parent for row in range(4)] == [0, 0, 1, 1]


def test_steps_that_are_lost_leave_the_rest():
    trace = told([(((1,),), 0, ()), (((2,),), 1, ()), (((3,),), 2, ())])
    del trace.source.steps[1]
    tree = branches(trace)
    assert lines(tree) == [("", [1]), ("", [3])]
    assert tree.line(1, 0) == []


def test_a_batch_that_was_joined_goes_on_from_the_text_of_each():
    trace = told([(((1, 2),), 0, ()), (((3, 4),), 0, ()), (((5,), (6,)), 2, ())])
    wrote = {0: (0, 2), 1: (2, 2), 2: (4, 1)}  # first cell, rows for each sequence
    for number, (first, rows) in wrote.items():
        step = trace.step(number)
        attended = ((Run(first, rows, 0, 0),),)
        if number == 2:
            attended = tuple(
                (Run(old, 2, 0, 0), Run(4 + row, 1, 2, 2)) for row, old in enumerate((0, 2))
            )
        group = replace(step.caches[0], first_cell=first, rows=rows, attended=attended)
        parent = 1 if number == 2 else None
        trace.source.steps[number] = replace(step, parent=parent, caches=(group,))
    assert lines(branches(trace)) == [("", [1, 2, 5]), ("", [3, 4, 6])]
