import json
import os
import pwd
import shutil
import stat

import pytest

from builders.raw_frames import split
from kvtrace.cli.shared import outputs
from kvtrace.errors import OutputExistsError
from kvtrace.files import open_trace
from kvtrace.files.disk import Appender
from kvtrace.files.layout import Kind
from kvtrace.files.writer import TraceWriter
from kvtrace.units import byte_size


def test_info_lists_every_string_of_the_file(kvtrace, trace_file):
    code, out, err = kvtrace("info", trace_file)
    assert (code, err) == (0, "")
    for text in ("Anna has the red key.", "model.layers.2.self_attn", "float32 rounding"):
        assert text in out
    code, out, _ = kvtrace("info", trace_file, "--json")
    told = json.loads(out)
    assert told["steps"] == 7
    assert told["strings"]["model.layers.1.self_attn"] == 2  # META is said again at the end


def test_info_says_how_many_bytes_hold_strings_that_it_can_not_list(kvtrace, trace_file, tmp_path):
    trace_file = shutil.copy(trace_file, tmp_path / "copy.kvt")
    assert "not listed" not in kvtrace("info", trace_file)[1]
    _, whole = split(trace_file)
    with trace_file.open("ab") as file:
        file.write(b"what another file held")
    told = json.loads(kvtrace("info", trace_file, "--json")[1])
    assert told["unlisted"] == 22
    assert "not listed: what 22 bytes hold" in kvtrace("info", trace_file)[1]
    first = whole[-2]
    with trace_file.open("r+b") as file:
        file.seek(first.offset + 70)
        file.write(b"!")
    told = json.loads(kvtrace("info", trace_file, "--json")[1])
    assert told["unlisted"] == 22 + len(first.packed())


def test_info_of_a_cut_file_is_exit_4(kvtrace, cut_file):
    code, out, _ = kvtrace("info", cut_file)
    assert code == 4
    assert "incomplete" in out


def test_info_of_a_cut_file_says_up_to_which_byte_it_is_whole(kvtrace, cut_file):
    whole = json.loads(kvtrace("info", cut_file, "--json")[1])["whole"]
    assert 0 < whole < cut_file.stat().st_size
    torn = cut_file.stat().st_size - whole
    out = kvtrace("info", cut_file)[1]
    assert f"whole up to byte {whole:,}, and its last {byte_size(torn)} are torn" in out


def test_recover_of_a_whole_file_is_exit_0(kvtrace, trace_file, tmp_path):
    target = tmp_path / "r.kvt"
    code, out, err = kvtrace("recover", trace_file, "-o", target)
    assert (code, err) == (0, "")
    assert out == f"{target}: 7 steps\n"
    assert len(open_trace(target)) == 7


def test_recover_of_a_cut_file_says_what_was_lost(kvtrace, cut_file):
    code, out, err = kvtrace("recover", cut_file)
    assert (code, err) == (4, "")
    assert "lost: the recording did not end" in out
    assert open_trace(cut_file.with_name("cut.recovered.kvt")).ending is not None


@pytest.mark.parametrize("lost", [0, 3])
def test_a_step_that_is_gone_is_missed_by_every_verb_after_recovery_too(
    kvtrace, trace_file, tmp_path, lost
):
    raw = bytearray(trace_file.read_bytes())
    steps = [frame for frame in split(trace_file)[1] if frame.kind == Kind.STEP]
    raw[steps[lost].offset + 70] ^= 1
    broken, saved = tmp_path / "broken.kvt", tmp_path / "saved.kvt"
    broken.write_bytes(raw)
    assert kvtrace("recover", broken, "-o", saved)[0] == 4
    trace = open_trace(saved)
    assert (trace.damage, trace.missing) == ([], [f"step {lost} is not in the file"])
    assert not trace.is_whole
    told = [kvtrace(*words) for words in (("show", saved), ("info", saved), ("check", saved))]
    assert [code for code, _, _ in told] == [4, 4, 3]
    assert all(f"step {lost} is not in the file" in out for _, out, _ in told)
    assert kvtrace("diff", trace_file, saved)[0] == kvtrace("diff", saved, trace_file)[0] == 3
    assert kvtrace("recover", saved, "-o", tmp_path / "again.kvt")[0] == 4


def test_recover_overwrites_only_with_force(kvtrace, trace_file, tmp_path):
    target = tmp_path / "r.kvt"
    target.write_text("mine")
    code, _, err = kvtrace("recover", trace_file, "-o", target)
    assert code == 73
    assert "--force" in err
    assert target.read_text() == "mine"
    assert kvtrace("recover", trace_file, "-o", target, "--force")[0] == 0


@pytest.mark.parametrize("verb", [[], ["record"]])
def test_an_output_that_exists_is_refused_before_anything_is_loaded(kvtrace, tmp_path, verb):
    target = tmp_path / "a.kvt"
    target.write_text("mine")
    code, out, err = kvtrace(*verb, "demo", "hello", "-o", target)
    assert (code, out) == (73, "")
    assert err == f"kvtrace: {target}: the file exists; --force replaces it, -o names another\n"
    assert target.read_text() == "mine"


def test_an_output_must_be_a_file_in_a_folder_that_is_there(tmp_path):
    for path, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "no" / "a.kvt", "there is no directory"),
    ):
        with pytest.raises(OutputExistsError, match=message):
            outputs.chosen(path, force=True)


def test_a_device_is_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputExistsError, match="not a regular file"):
        outputs.chosen(pipe, force=True)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("target", ["gone.kvt", "link.kvt"])
def test_a_link_that_leads_to_no_file_is_called_that_and_not_a_file(tmp_path, target):
    link = tmp_path / "link.kvt"
    link.symlink_to(target)
    for make in (lambda: outputs.chosen(link, force=True), lambda: Appender(link)):
        with pytest.raises(OutputExistsError, match="is a link that leads to no file; remove it"):
            make()
    assert link.is_symlink()


def test_a_headless_run_takes_the_next_free_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = []
    for model in ("org/gpt2", "org/gpt2", "./my model/", "x/make.py:factory", "../.."):
        path = outputs.beside(model)
        path.touch()
        names.append(path.name)
    assert names == ["gpt2.kvt", "gpt2-2.kvt", "my-model.kvt", "make.kvt", "trace.kvt"]


def test_watched_runs_stay_in_the_cache_folder_until_newer_ones_come(tmp_path, monkeypatch, trace):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "kvtrace"
    folder.mkdir()
    for age in range(outputs.KEPT + 5):
        path = folder / f"{age}.kvt"
        path.touch()
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    oldest = folder / f"{outputs.KEPT + 4}.kvt"
    oldest.unlink()
    with TraceWriter(oldest, trace.meta):
        os.utime(oldest, (0, 0))
        path = outputs.temporary("org/gpt2")
        left = {one.name for one in folder.iterdir()}
    assert path.parent == folder
    assert path.name.startswith("gpt2-")
    assert left == {f"{age}.kvt" for age in range(outputs.KEPT - 1)} | {oldest.name}


def test_processes_that_begin_in_one_second_have_traces_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(outputs.time, "strftime", lambda _: "20260101-000000")
    paths = set()
    for number in (1, 2):
        monkeypatch.setattr(outputs.os, "getpid", lambda number=number: number)
        paths.add(outputs.temporary("demo"))  # nothing is written yet
    assert len(paths) == 2


def test_a_cache_folder_that_cannot_be_made_says_to_name_a_file(tmp_path, monkeypatch):
    (tmp_path / "kvtrace").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(OutputExistsError, match="-o"):
        outputs.temporary("demo")


def test_without_a_home_directory_a_watched_run_says_to_name_a_file(monkeypatch):
    def nobody(_):
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(OutputExistsError, match=r"no home directory .* -o, or set XDG_CACHE_HOME"):
        outputs.temporary("demo")
