"""The ranks of one run read as one model, and everything in which they may not fit is named."""

import numpy as np
import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from builders.ranks import deal, write_each, write_ranks
from builders.reading import read_all, same
from builders.written import write_trace
from kvtrace.errors import MissingError, OutputExistsError, TraceError
from kvtrace.files import open_trace
from kvtrace.files.ranks import merge, open_ranks
from kvtrace.trace import Ending, Note, Rank, Tensor

SHAPE = Shape(layers=2, heads=8, kv_heads=4, prompt=70, decode=5)


def differences(one, whole, folder):
    """Items in which a trace is not what the trace of the whole model is."""
    path = folder / "in one process.kvt"
    other = read_all(open_trace(write_trace(path, whole)))
    path.unlink()
    one = read_all(one)
    assert one.keys() == other.keys()
    return [address for address in one if not same(one[address], other[address])]


@pytest.fixture
def whole():
    return synthetic_trace(SHAPE)


@pytest.mark.parametrize("size", [2, 4])
def test_a_folder_of_ranks_opens_as_the_whole_model(tmp_path, whole, size):
    write_ranks(tmp_path, whole, size)
    assert differences(open_trace(tmp_path), whole, tmp_path) == []
    assert open_trace(tmp_path).damage == ()


def test_merged_ranks_are_the_trace_of_the_whole_model(tmp_path, whole):
    paths = write_ranks(tmp_path, whole, 2)
    done = merge(list(reversed(paths)), tmp_path / "whole.kvt")
    assert (done.steps, done.lossy, done.text) == (6, False, ())
    assert differences(open_trace(tmp_path / "whole.kvt"), whole, tmp_path) == []


def test_kv_heads_that_several_ranks_hold_are_shown_once(tmp_path):
    whole = synthetic_trace(replace(SHAPE, kv_heads=2))
    paths = write_ranks(tmp_path, whole, 4)
    merge(paths, tmp_path / "whole.kvt")
    assert differences(open_trace(tmp_path / "whole.kvt"), whole, tmp_path) == []


def test_a_kv_head_that_is_not_the_same_in_two_ranks_is_named(tmp_path):
    ranks = deal(synthetic_trace(replace(SHAPE, kv_heads=1)), 2)
    ranks[1].source.cell_tensors[1, Tensor.VALUES][0, 71, 3] += 1
    paths = write_each(tmp_path, ranks)
    done = merge(paths, tmp_path / "whole.kvt")
    assert done.lossy
    assert done.text == (
        "step 2, cache layer 1: values of a kv head are not the same in run.rank0.kvt and "
        "run.rank1.kvt; the first are taken",
    )


def test_kv_heads_stay_apart_where_their_readers_would_stand_elsewhere(tmp_path):
    # both ranks hold kv heads 0 and 1, and heads 0, 1 of each read the first of them
    ranks = deal(synthetic_trace(replace(SHAPE, heads=8, kv_heads=4)), 2)
    for one in ranks:
        layers = [replace(x, first_kv_head=0, all_kv_heads=2) for x in one.meta.cache_layers]
        one.source.meta = replace(one.meta, cache_layers=tuple(layers))
    paths = write_each(tmp_path, ranks)
    trace = open_ranks(paths)
    assert [site.num_kv_heads for site in trace.meta.sites] == [4, 4]
    assert np.array_equal(
        trace.cells(0, Tensor.KEYS, 0, 70, 2), ranks[1].source.cells(0, Tensor.KEYS, 0, 70, 0)
    )


def test_a_missing_rank_is_named_with_its_heads(tmp_path, whole):
    paths = write_ranks(tmp_path, whole, 4)
    paths[1].unlink()
    trace = open_trace(tmp_path)
    said = "rank 1 of 4 is missing: without heads 2–3 of 8 and kv head 1 of 4; "
    said += "heads 0–1, 4–7 are here as 0, 1, …"
    assert trace.meta.model.banner == said
    assert [one.text for one in trace.damage] == [said]
    assert trace.meta.sites[0].num_heads == 6
    for head, true in enumerate([0, 1, 4, 5, 6, 7]):
        mine = trace.source.site_rows(3, 1, Tensor.QUERIES, head)
        assert np.array_equal(mine, whole.source.site_rows(3, 1, Tensor.QUERIES, true))
    done = merge(sorted(tmp_path.iterdir()), tmp_path / "part.kvt")
    assert (done.steps, done.lossy, done.text) == (6, True, (said,))
    assert open_trace(tmp_path / "part.kvt").meta.model.banner == said


def test_one_rank_alone_says_where_its_heads_are(tmp_path, whole):
    paths = write_ranks(tmp_path, whole, 2)
    meta = open_trace(paths[1]).meta
    assert meta.model.banner.startswith("rank 1 of 2: only its share of the heads is here")
    assert [(site.first_head, site.all_heads) for site in meta.sites] == [(4, 8)] * 2
    assert [(one.first_kv_head, one.all_kv_heads) for one in meta.cache_layers] == [(2, 4)] * 2


def test_steps_from_another_token_on_are_left_out_and_named(tmp_path, whole):
    ranks = deal(whole, 2)
    steps = ranks[1].source.steps
    steps[3] = replace(steps[3], tokens=((11,),))
    steps[2] = replace(steps[2], chosen=(11,))
    assert whole.step(3).tokens != ((11,),)
    paths = write_each(tmp_path, ranks)
    trace = open_trace(tmp_path)
    assert list(trace.numbers) == [0, 1]
    assert "step 2: run.rank1.kvt has another chosen token (11) than" in trace.damage[0].text
    assert merge(paths, tmp_path / "w.kvt").steps == 2


def test_a_choice_that_only_one_rank_tells_is_the_choice_of_all(tmp_path, whole):
    ranks = deal(whole, 2)
    steps = ranks[1].source.steps
    steps[3] = replace(steps[3], chosen=())
    write_each(tmp_path, ranks)
    trace = open_trace(tmp_path)
    assert trace.step(3).chosen == whole.step(3).chosen
    assert not trace.damage


def test_a_rank_that_ends_early_is_named(tmp_path, whole):
    ranks = deal(whole, 2)
    for number in (4, 5):
        del ranks[0].source.steps[number], ranks[0].source.lane_steps["recomputed", number]
    for one in ranks:
        one.source.passes.clear()
    paths = write_each(tmp_path, ranks)
    trace = open_trace(tmp_path)
    assert list(trace.numbers) == [0, 1, 2, 3]
    said = "run.rank0.kvt ends before step 4: later steps are left out"
    assert [one.text for one in trace.damage] == [said]
    assert merge(paths, tmp_path / "w.kvt").text == (said,)
    with pytest.raises(MissingError, match="step 4 is not in the traces of all ranks"):
        trace.step(4)


def test_a_rank_without_an_end_may_still_be_written(tmp_path, whole):
    ranks = deal(whole, 2)
    ranks[0].source.ending = None
    for number in (4, 5):
        del ranks[0].source.steps[number], ranks[0].source.lane_steps["recomputed", number]
    for one in ranks:
        one.source.passes.clear()
    paths = write_each(tmp_path, ranks)
    trace = open_trace(tmp_path)
    assert (trace.ending, trace.damage) == (None, ())
    said = merge(paths, tmp_path / "w.kvt").text
    assert said == (
        "not every rank says how the recording ended",
        "run.rank0.kvt ends before step 4: later steps are left out",
    )


def test_a_growing_folder_is_followed(tmp_path, whole):
    from builders.written import rows_of
    from kvtrace.files.writer import TraceWriter

    ranks = deal(whole, 2)
    writers = [TraceWriter(tmp_path / f"run.rank{i}.kvt", one.meta) for i, one in enumerate(ranks)]
    for number in (0, 1):
        for one, writer in zip(ranks, writers, strict=True):
            writer.append(one.step(number), rows_of(one, one.step(number)))
    trace = open_trace(tmp_path)
    writers[0].append(ranks[0].step(2), rows_of(ranks[0], ranks[0].step(2)))
    assert trace.source.refresh()
    assert list(trace.numbers) == [0, 1]
    writers[1].append(ranks[1].step(2), rows_of(ranks[1], ranks[1].step(2)))
    assert trace.source.refresh()
    assert list(trace.numbers) == [0, 1, 2]
    assert not trace.source.refresh()
    for writer in writers:
        writer.close()


def test_ranks_of_different_models_are_refused(tmp_path, whole):
    ranks = deal(whole, 2)
    source = ranks[1].source
    source.meta = replace(source.meta, model=replace(source.meta.model, vocab_size=9))
    paths = write_each(tmp_path, ranks)
    with pytest.raises(TraceError, match=r"run.rank1.kvt: the model has vocab_size 9, but in run"):
        open_ranks(paths)


def test_runs_with_no_step_in_common_are_refused(tmp_path, whole):
    one, _ = deal(whole, 2)
    _, other = deal(synthetic_trace(SHAPE, seed=1), 2)
    paths = [
        write_trace(tmp_path / "run.rank0.kvt", one),
        write_trace(tmp_path / "run.rank1.kvt", other),
    ]
    target = tmp_path / "w.kvt"
    with pytest.raises(TraceError, match="the ranks have no step in common"):
        merge(paths, target)
    assert not target.exists()


def test_the_same_rank_twice_is_refused(tmp_path, whole):
    paths = write_ranks(tmp_path, whole, 2)
    other = write_ranks(tmp_path, whole, 2, "again")
    with pytest.raises(TraceError, match=r"again.rank0.kvt and run.rank0.kvt are both rank 0 of 2"):
        open_ranks([paths[0], other[0]])


def test_ranks_of_models_with_other_heads_are_refused(tmp_path, whole):
    wider = synthetic_trace(replace(SHAPE, heads=16))
    ranks = write_each(tmp_path, [deal(whole, 2)[0], deal(wider, 2)[1]])
    with pytest.raises(TraceError, match=r"run.rank1.kvt: site 0 has all_heads 16, but .* is 8"):
        open_ranks(ranks)


def test_files_of_one_name_are_told_with_their_folders(tmp_path, whole):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, _ = write_ranks(tmp_path / "one", whole, 2)
    two, _ = write_ranks(tmp_path / "two", whole, 2)
    with pytest.raises(TraceError, match=f"{two} and {one} are both rank 0 of 2"):
        open_ranks([one, two])


def test_ranks_of_different_sizes_are_refused(tmp_path, whole):
    paths = [*write_ranks(tmp_path, whole, 2)[:1], *write_ranks(tmp_path, whole, 4, "four")[1:2]]
    with pytest.raises(TraceError, match=r"four.rank1.kvt is one of 4 ranks, but run.rank0.kvt"):
        open_ranks(paths)


def test_a_whole_trace_is_nothing_to_merge(tmp_path, whole):
    path = write_trace(tmp_path / "a.kvt", whole)
    with pytest.raises(TraceError, match="not of one rank of it; there is nothing to merge"):
        open_ranks([path])
    with pytest.raises(TraceError, match="a folder without traces of ranks"):
        open_trace(tmp_path)


def test_a_folder_of_several_runs_is_refused_by_their_names(tmp_path, whole):
    write_ranks(tmp_path, whole, 2)
    write_ranks(tmp_path, whole, 2, "again")
    with pytest.raises(TraceError, match=r"ranks of 2 runs \(again, run\)"):
        open_trace(tmp_path)


def test_merge_replaces_nothing_without_being_told(tmp_path, whole):
    paths = write_ranks(tmp_path, whole, 2)
    (tmp_path / "w.kvt").write_text("mine")
    with pytest.raises(OutputExistsError):
        merge(paths, tmp_path / "w.kvt")
    assert merge(paths, tmp_path / "w.kvt", force=True).steps == 6
    with pytest.raises(OutputExistsError, match="is a trace that is read here"):
        merge(paths, paths[1], force=True)


def test_an_error_of_any_rank_is_how_the_whole_ended(tmp_path, whole):
    ranks = deal(whole, 2)
    ranks[1].source.ending = Ending("error", "ValueError: no")
    ranks[0].source.notes.append(Note("note", "the same"))
    ranks[1].source.notes += [Note("note", "the same"), Note("note", "mine")]
    write_each(tmp_path, ranks)
    trace = open_trace(tmp_path)
    assert trace.ending == Ending("error", "ValueError: no")
    assert [note.text for note in trace.notes] == ["the same", "mine"]


@pytest.mark.parametrize("rank", [Rank(2, 2), Rank(-1, 2), Rank(0, 1 << 30)])
def test_a_rank_that_can_not_be_is_refused(tmp_path, whole, rank):
    one = deal(whole, 2)[0]
    one.source.meta = replace(one.meta, rank=rank)
    with pytest.raises(TraceError, match="a rank that can't be"):
        write_trace(tmp_path / "a.kvt", one)


def test_heads_that_begin_behind_the_last_are_refused(tmp_path, whole):
    one = deal(whole, 2)[0]
    sites = (replace(one.meta.sites[0], first_head=6), *one.meta.sites[1:])
    one.source.meta = replace(one.meta, sites=sites)
    with pytest.raises(TraceError, match="site 0 of META"):
        write_trace(tmp_path / "a.kvt", one)


def test_nan_of_a_kv_head_that_both_ranks_hold_counts_once(tmp_path):
    ranks = deal(synthetic_trace(replace(SHAPE, kv_heads=1)), 2)
    for one in ranks:
        one.source.cell_tensors[0, Tensor.KEYS][0, 71, 3] = np.nan
        step = one.step(2)
        group = replace(step.sites[0], nonfinite=(1, 0))
        one.source.steps[2] = replace(step, sites=(group,))
    write_each(tmp_path, ranks)
    assert open_trace(tmp_path).step(2).sites[0].nonfinite == (1, 0)


def test_nan_in_heads_of_different_ranks_adds_up(tmp_path, whole):
    ranks = deal(whole, 2)
    for one in ranks:
        one.source.site_tensors[2, 1, Tensor.QUERIES][0, 0, 0, 3] = np.inf
        step = one.step(2)
        group = replace(step.sites[0], nonfinite=(0, 1))
        one.source.steps[2] = replace(step, sites=(group,))
    write_each(tmp_path, ranks)
    assert open_trace(tmp_path).step(2).sites[0].nonfinite == (0, 2)


def test_a_bias_of_each_head_is_that_of_its_rank(tmp_path, whole):
    ranks = deal(whole, 2)
    for number, one in enumerate(ranks):
        for step in list(one):
            mask = replace(step.sites[0].mask, bias=True)
            one.source.steps[step.number] = replace(
                step, sites=(replace(step.sites[0], mask=mask),)
            )
            for site in (0, 1):
                seq = 70 + step.number
                bias = np.full((1, 4, step.new, seq), number, np.float32)
                bias[0, 3] = 7
                one.source.biases[step.number, site] = bias
        one.source.passes.clear()
        write_trace(tmp_path / f"run.rank{number}.kvt", one)
    found = open_trace(tmp_path).source.bias(3, 1)
    assert found.shape == (1, 8, 1, 73)
    assert found[0, :, 0, 0].tolist() == [0, 0, 0, 7, 1, 1, 1, 7]
