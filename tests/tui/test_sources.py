from pathlib import Path

import pytest
from msgspec.structs import replace

from builders import synthetic_trace
from kvtrace_tui import sources
from kvtrace_tui.screens.pages.code import code_rows
from kvtrace_tui.sources import source_of

CODE = "import torch\n\ndef attend(q, k):\n    return q @ k.mT\n"


@pytest.fixture
def trace():
    return synthetic_trace()


def written(trace, code, versions=None):
    """The trace whose first layer is written there."""
    meta = trace.meta
    site = replace(meta.sites[0], code=code)
    trace.source.meta = replace(
        meta, sites=(site, *meta.sites[1:]), versions=versions or meta.versions
    )
    return trace


def words(rows):
    return ["".join(text for text, _ in row) for row in rows]


def test_a_file_below_the_current_folder_is_found_and_its_line_is_meant(trace, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "model.py").write_text(CODE)
    found = source_of(written(trace, "model.py:4"), 0, tmp_path)
    assert found.path.endswith("src/model.py")
    rows, head, at = code_rows(trace, 2, 0, found, 200)
    assert words(rows)[at] == " ▸ 4      return q @ k.mT"
    assert "q [4, 1, 8]  k [2, 7, 8]  v [2, 7, 8]  scores [4, 1, 7]" in "\n".join(
        words(rows)[:head]
    )
    assert "2 × 4 × 1 × 7 × 8 = 448 FLOP" in "\n".join(words(rows)[:head])
    assert "7 queries: 3.14 kFLOP" in "\n".join(words(rows)[:head])


def test_the_lines_of_the_scores_and_of_the_output_are_both_meant(trace, tmp_path):
    (tmp_path / "model.py").write_text(CODE)
    site = replace(trace.meta.sites[0], code="model.py:4", scores_code="model.py:3")
    trace.source.meta = replace(trace.meta, sites=(site, *trace.meta.sites[1:]))
    rows, _, at = code_rows(trace, 2, 0, source_of(trace, 0, tmp_path), 200)
    assert [row for row in words(rows) if "▸" in row] == words(rows)[at - 1 : at + 1]
    assert any(row.startswith(" model.py:3 scores, :4 output") for row in words(rows))


def test_what_is_said_above_the_code_is_not_cut_in_a_narrow_terminal(trace, tmp_path):
    found = source_of(written(trace, "gone.py:7"), 0, tmp_path)
    rows, head, _ = code_rows(trace, 2, 0, found, 60)
    assert all(len(row) <= 60 for row in words(rows)[:head])
    said = " ".join(" ".join(words(rows)).split())
    assert "start kvtrace where the model's code is" in said
    assert "output [4, 1, 8]" in said


def test_a_shorter_file_of_that_name_is_another_one(trace, tmp_path):
    (tmp_path / "model.py").write_text("x = 1\n")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.py").write_text(CODE)
    assert source_of(written(trace, "model.py:4"), 0, tmp_path).path.endswith("old/model.py")


@pytest.mark.parametrize(
    "code", ["", "model.py", "gone.py:7", "../model.py:3", "/etc/passwd:1", ".x.py:1", "a.py:٣"]
)
def test_what_is_not_there_or_no_name_of_a_file_is_said(trace, tmp_path, code):
    (tmp_path / "below").mkdir()
    (tmp_path / "model.py").write_text(CODE)
    found = source_of(written(trace, code), 0, tmp_path / "below")
    assert found.lines == ()
    assert found.remark
    rows, _, _ = code_rows(trace, 2, 0, found, 200)
    assert found.remark in "\n".join(words(rows))


def test_control_characters_of_a_file_never_reach_the_screen(trace, tmp_path):
    (tmp_path / "model.py").write_bytes(b"a = '\x1b]0;x\x07'\n\xff\n")
    found = source_of(written(trace, "model.py:1"), 0, tmp_path)
    assert found.lines[0] == "a = '␛]0;x␇'"


def test_a_file_too_large_to_be_code_is_not_read(trace, tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(CODE)
    monkeypatch.setattr(sources, "LARGEST", 10)
    assert source_of(written(trace, "model.py:4"), 0, tmp_path).lines == ()


def test_another_version_of_the_library_is_said(trace, tmp_path):
    trace = written(trace, "modeling_gpt2.py:10", {"transformers": "0.0.1"})
    found = source_of(trace, 0, tmp_path)
    assert "models/gpt2/modeling_gpt2.py" in found.path
    assert "recorded with transformers 0.0.1" in found.remark


def test_looking_for_a_file_ends_in_a_large_tree(trace, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_FOLDERS", 3)
    for name in "abcdef":
        (tmp_path / name).mkdir()
    Path(tmp_path, "f", "model.py").write_text(CODE)
    assert source_of(written(trace, "model.py:4"), 0, tmp_path).lines == ()


@pytest.mark.parametrize(
    ("model", "code"), [("demo-cla", "cla.py:64"), ("zoo: rope-restarts", "decoder.py:142")]
)
def test_the_code_of_a_built_in_model_is_found_from_anywhere(trace, tmp_path, model, code):
    written(trace, code)
    assert source_of(trace, 0, tmp_path).path == ""  # another model's file is not taken for it
    meta = trace.meta
    trace.source.meta = replace(meta, model=replace(meta.model, name=model))
    found = source_of(trace, 0, tmp_path)
    assert found.path.endswith(code.partition(":")[0])
    assert "kvtrace_fixtures" in found.path


def test_a_file_of_ones_own_that_is_called_like_a_built_in_is_not_taken_for_it(trace, tmp_path):
    Path(tmp_path, "decoder.py").write_text(CODE)
    written(trace, "decoder.py:4")
    meta = trace.meta
    trace.source.meta = replace(meta, model=replace(meta.model, name="demo.py:make"))
    assert "kvtrace_fixtures" not in source_of(trace, 0, tmp_path).path
