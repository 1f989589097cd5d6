"""`kvtrace check` and `kvtrace diff` on traces and models, as people and a CI call them."""

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from msgspec.structs import replace

from builders.commands import environment, run
from builders.synthetic import Shape, synthetic_trace
from builders.written import write_trace
from kvtrace.trace import Tensor
from kvtrace_fixtures import BUILT_IN

BUGS = Path(__file__).parents[1] / "verify" / "bugs.py"

NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
"""


def broken(tmp_path):
    """A trace whose queries are 4 times too large from step 3 on, in layer 1."""
    trace = synthetic_trace()
    trace.source.site_tensors[3, 1, Tensor.QUERIES] *= 4
    compared = trace.source.lane_steps["recomputed", 3]
    compared.max_abs[1, Tensor.QUERIES] = compared.reference_max[1, Tensor.QUERIES]
    return write_trace(tmp_path / "broken.kvt", trace)


def test_a_healthy_trace_is_equal_and_exit_0(kvtrace, trace_file):
    code, out, err = kvtrace("check", trace_file)
    assert (code, err) == (0, "")
    first = "equal within rounding (prefill of 5, 6 decode steps; 7 steps compared)"
    assert out.splitlines()[0] == first
    assert "float32 rounding: 2e-05" in " ".join(out.split())


def test_a_broken_trace_names_the_bug_and_is_exit_1(kvtrace, tmp_path):
    path = broken(tmp_path)
    code, out, _ = kvtrace("check", path)
    assert code == 1
    assert out.startswith(
        "diverged: scores are the right ones times a constant (SCALE) at step 3, layer 1, queries\n"
    )
    assert f"kvtrace open {path} --at 3/1/0/q" in out
    assert "the 2 decode steps before are right" in " ".join(out.split())


def test_a_trace_without_another_lane_is_exit_3_and_says_what_to_do(kvtrace, tmp_path):
    trace = synthetic_trace()
    trace.source.meta = replace(trace.meta, lanes=())
    trace.source.passes.clear()
    code, out, _ = kvtrace("check", write_trace(tmp_path / "a.kvt", trace))
    assert code == 3
    assert out.startswith("could not check: a.kvt has only the cached lane")
    assert "without `--recompute off`" in out


def test_a_cut_trace_is_exit_3(kvtrace, cut_file):
    code, out, _ = kvtrace("check", cut_file)
    assert code == 3
    assert out.startswith("could not check: ")
    assert "incomplete" in out


def test_rows_that_fail_their_checksum_are_never_a_pass(kvtrace, tmp_path):
    path = write_trace(tmp_path / "a.kvt", synthetic_trace())
    rows = synthetic_trace().source.site_tensors[3, 1, Tensor.QUERIES].tobytes()
    raw = bytearray(path.read_bytes())
    raw[raw.index(rows[:16])] ^= 1  # the comparisons that were stored are as they were
    path.write_bytes(raw)
    code, out, _ = kvtrace("check", path)
    assert code == 3
    assert "7 of 7 steps were compared and are equal within rounding, but a.kvt is damaged: " in (
        " ".join(out.split())
    )
    assert "step 3, layer 1, queries" in out
    assert "Mind" not in out


def test_what_is_no_trace_is_exit_65(kvtrace, tmp_path):
    path = tmp_path / "a.kvt"
    path.write_bytes(b"garbage" * 100)
    assert kvtrace("check", path)[0] == 65
    assert kvtrace("diff", path, path)[0] == 65


def test_several_traces_are_one_verdict(kvtrace, trace_file, tmp_path):
    code, out, _ = kvtrace("check", trace_file, broken(tmp_path))
    assert code == 1
    assert "  prefill of 5, 6 decode steps  equal\n" in out
    assert "  prefill of 5, 6 decode steps  diverged: SCALE at step 3, layer 1\n" in out


def test_quiet_is_one_line_and_json_is_for_programs(kvtrace, tmp_path):
    path = broken(tmp_path)
    code, out, _ = kvtrace("check", path, "-q")
    assert (code, out.count("\n")) == (1, 1)
    code, out, _ = kvtrace("check", path, "--json")
    told = json.loads(out)
    assert (code, told["verdict"], told["exit_code"]) == (1, "diverged", 1)
    (found,) = told["findings"]
    assert (found["name"], found["step"], found["layer"], found["at"]) == (
        "SCALE", 3, 1, "3/1/0/q",
    )  # fmt: skip
    assert found["cause"]
    assert told["runs"][0]["trace"] == str(path)


def test_json_has_the_names_that_programs_were_written_for(kvtrace, tmp_path):
    told = json.loads(kvtrace("check", broken(tmp_path), "--json")[1])
    report = {"verdict", "exit_code", "reason", "steps", "findings", "largest", "flips", "caveats"}
    assert told["schema"] == 1
    assert set(told) == {"schema", "runs", *report}
    assert set(told["runs"][0]) == {"name", "trace", "essential", *report}
    assert set(told["findings"][0]) >= {
        "name", "step", "layer", "head", "slot", "sequences", "tensor", "evidence", "apart",
        "limit", "code", "means", "cause", "bug", "at",
    }  # fmt: skip


def test_junit_has_one_case_a_run(kvtrace, trace_file, tmp_path):
    report = tmp_path / "junit.xml"
    kvtrace("check", trace_file, broken(tmp_path), "--junit", report)
    suite = ET.parse(report).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    healthy, failed = suite.findall("testcase")
    assert healthy.find("failure") is None
    assert failed.find("failure").get("type") == "SCALE"
    assert "(SCALE)" in failed.find("failure").get("message")
    assert "rounding explains" in failed.find("failure").text


@pytest.mark.parametrize("verb", ["check", "diff"])
def test_a_report_that_can_go_nowhere_is_refused_before_the_work(kvtrace, tmp_path, verb):
    for place, why in ((tmp_path / "none" / "a.xml", "there is no directory"), (tmp_path, "is a")):
        code, out, err = kvtrace(verb, "not.kvt", "there.kvt", "--junit", place)
        assert (code, out) == (73, "")
        assert why in err


def test_a_report_for_which_there_is_no_room_is_named(kvtrace, trace_file):
    code, _, err = kvtrace("check", trace_file, "--junit", "/dev/full")
    told = "kvtrace: /dev/full: the report can't be written: No space left on device\n"
    assert (code, err) == (74, told)


def test_a_case_of_junit_says_what_the_terminal_says(kvtrace, tmp_path):
    path, report = broken(tmp_path), tmp_path / "junit.xml"
    _, out, _ = kvtrace("check", path, "--junit", report)
    (case,) = ET.parse(report).getroot()
    assert case.find("failure").text == out.rstrip("\n")


def test_junit_tells_traces_apart_that_did_the_same(kvtrace, trace_file, tmp_path):
    report, other = tmp_path / "junit.xml", tmp_path / "other.kvt"
    other.write_bytes(trace_file.read_bytes())
    kvtrace("check", trace_file, other, "--junit", report)
    names = [case.get("name") for case in ET.parse(report).getroot()]
    assert len(set(names)) == 2
    assert names[1].endswith(" (other.kvt)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.kvt", "hello"], "'hello' stands beside a trace"),
        (["demo", "--ways", "swim"], "'swim' is unknown"),
        (["demo", "--recompute", "off"], "nothing to hold the cache against"),
        (["demo", "-q", "--json"], "not allowed with"),
    ],
)
def test_wrong_usage_is_one_line(kvtrace, arguments, message):
    code, out, err = kvtrace("check", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_traces_are_checked_and_compared_without_torch(trace_file, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_TORCH)
    env = environment(PYTHONPATH=str(tmp_path))
    code, out, err = run("check", trace_file, cwd=tmp_path, env=env)
    assert (code, err) == (0, ""), out
    code, out, err = run("diff", trace_file, trace_file, cwd=tmp_path, env=env)
    assert (code, err) == (0, ""), out


def test_a_model_is_checked_in_every_way_and_the_bad_traces_are_kept(tmp_path):
    env = environment(XDG_CACHE_HOME=str(tmp_path))
    model = f"{BUGS}:unmasked"
    code, out, err = run("check", model, "Anna has", "-n", 3, cwd=tmp_path, env=env)
    assert code == 1, err
    assert out.startswith("diverged: padding is visible (PAD-VISIBLE) at step 1, layer 0")
    rows = [line.split("  ")[-1].strip() for line in out.splitlines() if line.startswith("  ")][-5:]
    assert [row.partition(":")[0] for row in rows] == ["equal"] * 3 + ["diverged", "equal"]
    kept = sorted(path.name for path in (tmp_path / "kvtrace").iterdir())
    assert len(kept) == 1
    assert kept[0].endswith("-padded.kvt")
    assert f"kvtrace/{kept[0]} --at 1/0/0/k" in out


def test_a_healthy_model_leaves_all_its_traces_where_asked(tmp_path):
    arguments = ["check", f"{BUGS}:gpt2", "Anna has", "-n", 2, "--ways", "chunks"]
    code, out, err = run(*arguments, "-o", "a.kvt", cwd=tmp_path)
    assert code == 0, err
    assert out.startswith("equal within rounding (2 runs, ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-chunks.kvt", "a.kvt"]
    again, _, err = run(*arguments, "-o", "a.kvt", cwd=tmp_path)
    assert again == 73
    assert "exists" in err


def test_a_decode_alone_is_checked_when_that_is_asked_for(tmp_path):
    arguments = ["check", f"{BUGS}:gpt2", "Anna has", "-n", 2, "--ways", "none", "-o", "a.kvt"]
    code, out, err = run(*arguments, cwd=tmp_path)
    assert code == 0, err
    assert out.startswith("equal within rounding (prefill of 8, 1 decode step; 2 steps compared)")


def test_a_recurrent_model_is_exit_3(tmp_path):
    env = environment(XDG_CACHE_HOME=str(tmp_path))
    arguments = ["check", f"{BUGS}:recurrent", "Anna", "-n", 2, "--json"]
    code, out, err = run(*arguments, cwd=tmp_path, env=env)
    assert code == 3, err
    assert json.loads(out)["verdict"] == "could not check"


# -- diff ----------------------------------------------------------------------------------


def test_a_trace_is_equal_to_itself(kvtrace, trace_file):
    code, out, _ = kvtrace("diff", trace_file, trace_file)
    assert code == 0
    assert out.startswith("equal within rounding (11 tokens in common)")


def test_the_first_place_where_two_traces_part_is_named(kvtrace, trace_file, tmp_path):
    other = broken(tmp_path)
    code, out, _ = kvtrace("diff", trace_file, other)
    assert code == 1
    assert out.startswith("diverged at step 3, layer 1, head ")
    assert "queries, looks like SCALE" in out
    assert f"kvtrace open {other} --at 3/1/" in out
    code, out, _ = kvtrace("diff", trace_file, other, "--json")
    told = json.loads(out)
    assert (code, told["verdict"], told["first"]["layer"], told["first"]["tensor"]) == (
        1, "diverged", 1, "queries",
    )  # fmt: skip
    assert told["schema"] == 1
    assert kvtrace("diff", trace_file, other, "-q")[1].count("\n") == 1


def test_junit_of_two_traces_is_one_case_that_says_what_the_terminal_says(
    kvtrace, trace_file, tmp_path
):
    other = write_trace(tmp_path / "b.kvt", synthetic_trace(Shape(layers=2)))
    for new, outcome, what in (
        (trace_file, None, ""),
        (broken(tmp_path), "failure", "SCALE"),
        (other, "error", "could not check"),
    ):
        report = tmp_path / "junit.xml"
        _, out, _ = kvtrace("diff", trace_file, new, "--junit", report)
        suite = ET.parse(report).getroot()
        (case,) = suite
        assert case.get("name") == f"kvtrace diff {trace_file} {new}"
        assert [child.tag for child in case] == ([outcome] if outcome else [])
        for child in case:
            assert (child.get("type"), child.text) == (what, out.rstrip("\n"))
            assert child.get("message") == out.splitlines()[0]
        told = kvtrace("diff", trace_file, new, "--json", "--junit", report)[1]
        assert json.loads(told)["verdict"]
        assert len(ET.parse(report).getroot()) == 1


def test_traces_of_different_models_are_exit_3(kvtrace, trace_file, tmp_path):
    other = write_trace(tmp_path / "b.kvt", synthetic_trace(Shape(layers=2)))
    code, out, _ = kvtrace("diff", trace_file, other)
    assert code == 3
    assert out.startswith("could not check: not the same model")


# -- scripts -------------------------------------------------------------------------------

SCRIPT = f"""
import sys
sys.path.insert(0, {str(BUGS.parent)!r})
import bugs, torch, kvtrace

print("said by the script", *sys.argv[1:])
model = getattr(bugs, sys.argv[1] if len(sys.argv) > 1 else "gpt2")()
with torch.no_grad():
    out = model(input_ids=torch.tensor([[5, 9, 30, 7]]), use_cache=True)
    for _ in range(2):
        model(input_ids=torch.tensor([[4]]), past_key_values=out.past_key_values, use_cache=True)
"""


def test_a_script_is_run_untouched_and_what_it_left_is_judged(tmp_path):
    (tmp_path / "sample.py").write_text(SCRIPT)
    env = environment(XDG_CACHE_HOME=str(tmp_path / "cache"))
    code, out, err = run("check", "sample.py", cwd=tmp_path, env=env)
    assert code == 0, err
    assert out.startswith("equal within rounding (prefill of 4, 2 decode steps; 3 steps compared)")
    assert "said by the script" in err
    arguments = ["check", "sample.py", "--json", "--", "off_by_one"]
    code, out, err = run(*arguments, cwd=tmp_path, env=env)
    told = json.loads(out)
    assert (code, told["findings"][0]["name"]) == (1, "POSITION-ROPE"), err
    assert Path(told["runs"][0]["trace"]).is_file()
    assert [path.name for path in tmp_path.glob("*.kvt")] == []


def test_a_run_that_the_script_records_itself_is_judged_once(tmp_path):
    own = SCRIPT.replace(
        "with torch.no_grad():", "with torch.no_grad(), kvtrace.record('own.kvt'):"
    )
    (tmp_path / "sample.py").write_text(own)
    env = environment(XDG_CACHE_HOME=str(tmp_path / "cache"))
    code, out, err = run("check", "sample.py", cwd=tmp_path, env=env)
    assert code == 0, err
    assert out.startswith("equal within rounding (prefill of 4, 2 decode steps; 3 steps compared)")
    assert (tmp_path / "own.kvt").is_file()


def test_a_script_in_which_nothing_attends_could_not_be_checked(tmp_path):
    (tmp_path / "nothing.py").write_text("raise SystemExit(4)")
    env = environment(XDG_CACHE_HOME=str(tmp_path / "cache"))
    code, out, _ = run("check", "nothing.py", cwd=tmp_path, env=env)
    assert code == 3
    assert out.startswith("could not check: nothing.py left no trace; where it builds")
    assert "Mind: nothing.py ended with exit code 4." in out


def test_a_check_goes_on_where_the_model_ends_its_text(tmp_path):
    shutil.copytree(BUILT_IN["demo"].directory, folder := tmp_path / "demo")
    ends = json.dumps({"eos_token_id": list(range(2048))})
    (folder / "generation_config.json").write_text(ends)
    asked = ("check", folder, "Anna", "-n", "3", "--ways", "none", "--quiet")
    code, out, _ = run(*asked, cwd=tmp_path)
    assert (code, out[:5]) == (0, "equal")
