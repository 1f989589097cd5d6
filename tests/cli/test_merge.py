"""`kvtrace merge`, and folders of ranks wherever a trace is named."""

import pytest

from builders.ranks import write_ranks
from kvtrace.files import open_trace


@pytest.fixture
def ranks(trace, tmp_path):
    folder = tmp_path / "ranks"
    folder.mkdir()
    return write_ranks(folder, trace, 2)


def test_merge_joins_the_files_that_are_named(kvtrace, ranks, tmp_path):
    target = tmp_path / "whole.kvt"
    code, out, err = kvtrace("merge", *ranks, "-o", target)
    assert (code, out, err) == (0, f"{target}: 7 steps of 2 ranks\n", "")
    assert open_trace(target).meta.sites[0].num_heads == 4


def test_merge_joins_the_ranks_in_a_folder(kvtrace, ranks, tmp_path):
    target = tmp_path / "whole.kvt"
    assert kvtrace("merge", ranks[0].parent, "-o", target)[0] == 0
    assert len(open_trace(target)) == 7


def test_merge_without_a_rank_names_its_heads_and_is_exit_4(kvtrace, ranks, tmp_path):
    target = tmp_path / "whole.kvt"
    code, out, _ = kvtrace("merge", ranks[0], "-o", target)
    assert code == 4
    assert out.splitlines() == [
        f"{target}: 7 steps of 1 rank",
        "  rank 1 of 2 is missing: without heads 2–3 of 4 and kv head 1 of 2",
    ]


def test_merge_of_what_is_no_rank_is_exit_65(kvtrace, trace_file, tmp_path):
    code, _, err = kvtrace("merge", trace_file, "-o", tmp_path / "w.kvt")
    assert code == 65
    assert "not of one rank of it" in err
    assert not (tmp_path / "w.kvt").exists()


def test_merge_needs_to_be_told_where_to_write(kvtrace, ranks):
    code, _, err = kvtrace("merge", *ranks)
    assert code == 2
    assert "-o" in err


def test_merge_takes_one_folder_or_files(kvtrace, ranks, tmp_path):
    code, _, err = kvtrace("merge", ranks[0].parent, ranks[0], "-o", tmp_path / "w.kvt")
    assert code == 2
    assert "name one folder, or the files of the ranks" in err


def test_show_of_a_folder_tells_of_the_whole_model(kvtrace, ranks):
    code, out, _ = kvtrace("show", ranks[0].parent)
    assert code == 0
    assert "4 on 2 kv heads" in out
    assert "run (ranks 0–1), 7 steps" in out


def test_show_of_a_folder_names_a_missing_rank(kvtrace, ranks):
    ranks[0].unlink()
    code, out, _ = kvtrace("show", ranks[0].parent)
    assert code == 4
    assert "rank 0 of 2 is missing: without heads 0–1 of 4 and kv head 0 of 2" in out


def test_check_without_a_rank_says_whose_heads_it_did_not_see(kvtrace, ranks, tmp_path):
    ranks[0].unlink()
    merged = tmp_path / "merged.kvt"
    assert kvtrace("merge", ranks[0].parent, "-o", merged)[0] == 4
    code, out, _ = kvtrace("check", merged)
    assert code in (0, 1)
    assert "rank 0 of 2 is missing: without heads 0–1 of 4 and kv head 0 of 2" in out


@pytest.mark.parametrize("verb", ["info", "recover"])
def test_other_verbs_say_that_a_folder_is_no_trace(kvtrace, ranks, verb, monkeypatch):
    monkeypatch.chdir(ranks[0].parent)
    code, out, err = kvtrace(verb, ".")
    assert (code, out) == (65, "")
    assert err == "kvtrace: .: can't be read: Is a directory. Give the name of a .kvt file.\n"


def test_check_of_a_folder_judges_the_whole_model(kvtrace, ranks):
    code, out, _ = kvtrace("check", ranks[0].parent)
    assert code == 0
    assert out.startswith("equal within rounding")
