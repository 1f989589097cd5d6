"""Who wrote the rows that a sequence goes on with, where layers are grouped anew at each step."""

from kvtrace.analysis.rows.writers import Writers
from kvtrace.trace import CacheStep, Run, Step, TopLogits

TOPS = (TopLogits((7, 3), (2.0, 1.0), 2.4), TopLogits((3, 7), (2.0, 1.0), 2.4))


def step(number, tokens, groups, parent=None):
    """Groups: (layers, first cell, cells that each sequence is given)."""
    caches = tuple(
        CacheStep(
            layers,
            first_cell=first,
            rows=1,
            attended=tuple(tuple(Run(*run) for run in runs) for runs in cells),
            kept=(),
            length_before=number,
            length_after=number + 1,
        )
        for layers, first, cells in groups
    )
    places = tuple((number,) for _ in tokens)
    ids = tuple((token,) for token in tokens)
    return Step(number, "decode", parent, ids, places, (None,) * len(ids), TOPS, caches)


def runs(*cells):
    return tuple((cell, 1, place, place) for place, cell in enumerate(cells))


def test_layers_that_part_from_a_group_know_who_wrote_their_rows():
    writers = Writers()
    writers.add(step(0, (1, 2), [((0, 1), 0, (runs(0), runs(1)))]))
    # both layers go on with the other sequence's row, each in a group of its own
    crossed = (runs(1, 2), runs(0, 3))
    after = step(1, (3, 7), [((0,), 2, crossed), ((1,), 2, crossed)], parent=0)
    assert writers.moved(after) == ((0, 1), (0, 0))


def test_rows_of_which_nobody_knows_the_writer_say_nothing():
    writers = Writers()
    writers.add(step(0, (1, 2), [((0,), 4, (runs(4), runs(5)))]))
    unknown = step(1, (3, 7), [((0,), 6, (runs(1, 6), runs(0, 7)))], parent=0)
    assert writers.moved(unknown) is None
