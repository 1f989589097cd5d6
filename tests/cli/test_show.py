import json
import math

import numpy as np
import pytest
from msgspec.structs import replace

from builders.memory import MemorySource
from builders.raw_frames import joined, split
from builders.synthetic import Shape, synthetic_trace
from builders.written import write_trace
from kvtrace.analysis.cost.costs import step_cost
from kvtrace.analysis.heads.attention import attention
from kvtrace.analysis.lanes.compare import compare
from kvtrace.analysis.summary import summary
from kvtrace.cli.show.plain import plain
from kvtrace.cli.show.text import head
from kvtrace.errors import UsageError
from kvtrace.files import open_trace
from kvtrace.files.layout import Kind, pack_header
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import Ending, Flops, Sampling, Tensor, Trace


def shown(kvtrace, path, *options):
    code, out, err = kvtrace("show", path, "--json", *options)
    assert err == ""
    return code, json.loads(out)


def test_json_says_the_numbers_of_the_api(kvtrace, trace_file):
    code, told = shown(kvtrace, trace_file, "--step", 4, "--layer", 1, "--head", 3, "--numbers")
    trace = open_trace(trace_file)
    assert code == 0
    assert told["complete"] is True
    assert told["num_steps"] == len(told["steps"]) == len(trace)
    for number, step in enumerate(told["steps"]):
        assert step["sentence"] == summary(trace, number).sentence
        cost = step_cost(trace, number)
        assert step["cost"]["as computed"]["cached"]["flops"] == cost.cached.flops
        assert step["cost"]["as computed"]["flops_ratio"] == cost.flops_ratio
        assert step["recorded"]["elapsed_ns"] == trace.step(number).elapsed_ns
        compared = trace.compared(number)
        assert step["compared"]["recomputed"]["max_abs"] == plain(compared.max_abs)
    tensors = told["at"]["tensors"]
    assert tensors["keys"]["values"] == trace.cache(4, 1, head=1).keys[0].tolist()
    assert tensors["values"]["values"] == trace.cache(4, 1, head=1).values[0].tolist()
    assert tensors["queries"]["values"] == trace.queries(4, 1)[3].tolist()
    assert tensors["output"]["values"] == trace.output(4, 1)[3].tolist()
    assert tensors["weights"]["values"] == trace.weights(4, 1, 3).weights[0].tolist()
    found = compare(trace, 4, 1, Tensor.KEYS, 3)
    assert tensors["keys"]["lanes"]["recomputed"]["largest"] == found.largest
    assert tensors["keys"]["statistics"]["maximum"] == trace.cache(4, 1, head=1).keys.max()
    assert tensors["keys"]["head"] == 1


def test_text_says_what_every_step_did(kvtrace, trace_file, trace):
    code, out, err = kvtrace("show", trace_file)
    assert (code, err) == (0, "")
    for step in trace:
        assert summary(trace, step.number).sentence in out
    assert "recomputed: rounding" in out
    assert "self-check: largest error 1.0e-07" in out
    assert "weights · v" in out
    assert "looks at" in out


def test_padding_is_counted_and_not_shown_as_the_text(kvtrace, tmp_path):
    trace = synthetic_trace()
    first = trace.step(0)
    trace.source.steps[0] = replace(first, positions=((-2, -1, 0, 1, 2),))
    _, out, _ = kvtrace("show", write_trace(tmp_path / "a.kvt", trace))
    words = " ".join(f"<{one}>" for one in first.tokens[0][2:])
    assert f"  (2 of padding) {words} → " in out


def test_a_head_is_said_to_look_after_an_earlier_token_where_there_is_one(kvtrace, tmp_path):
    trace = synthetic_trace()
    last = trace.step(6)
    asks = f"<{last.tokens[0][0]}>"
    _, out, _ = kvtrace("show", write_trace(tmp_path / "a.kvt", trace), "--step", 6)
    assert f"after an earlier {asks}: " in out
    trace.source.steps[6] = replace(last, tokens=((11,),))  # it stands nowhere else
    _, out, _ = kvtrace("show", write_trace(tmp_path / "b.kvt", trace), "--step", 6)
    assert "asking: " in out
    assert "after an earlier" not in out


@pytest.mark.parametrize(
    ("sampling", "line"),
    [
        (Sampling("kvtrace", 32), "run       kvtrace, 32 new tokens asked for, greedy"),
        (
            Sampling("generate", temperature=0.5, top_k=3, seed=7),
            "run       generate, temperature 0.5, top-k 3, seed 7",
        ),
        (Sampling("caller"), "run       the recorded program gave the tokens"),
    ],
)
def test_text_says_who_chose_the_tokens(trace, sampling, line):
    source = trace.source
    source.meta = replace(source.meta, sampling=sampling)
    assert line in "\n".join(head(trace))


@pytest.mark.parametrize(
    ("driver", "said"), [("kvtrace", "∅"), ("caller", "the recorded program's own")]
)
def test_text_calls_a_prompt_empty_only_where_kvtrace_was_given_it(trace, driver, said):
    source = trace.source
    source.meta = replace(source.meta, prompt="", sampling=Sampling(driver))
    assert f"prompt    {said}" in "\n".join(head(trace))


def test_text_says_how_to_name_a_tokenizer_where_only_ids_are_known(trace):
    source = trace.source
    card = replace(source.meta.model, tokenizer="")
    source.meta, source.texts = replace(source.meta, model=card), {}
    assert "ids are shown: kvtrace.record(…, tokenizer=…) names one" in "\n".join(head(trace))
    source.texts = dict.fromkeys(trace.step(0).tokens[0], "a")
    assert "tokens    no tokenizer; context" in "\n".join(head(trace))


def test_text_prints_every_number_of_a_place_exactly(kvtrace, trace_file, trace):
    _, out, _ = kvtrace("show", trace_file, "--step", 2, "--tensor", "queries", "--numbers")
    last = out.split("queries, head 0\n")[1].split()
    assert last[0] == "0"
    assert np.array_equal(np.array(last[1:], np.float32), trace.queries(2, 0)[0, 0])


def test_one_place_alone_leaves_the_run_out(kvtrace, trace_file):
    _, out, _ = kvtrace("show", trace_file, "--step", 2, "--layer", 1)
    assert out.startswith("step 2, layer 1, head 0")
    assert "prompt" not in out


@pytest.mark.parametrize(
    ("steps", "numbers"),
    [("2:4", [2, 3]), (":2", [0, 1]), ("5:", [5, 6]), ("3", [3]), ("4:2", []), ("90:", [])],
)
def test_steps_can_be_chosen(kvtrace, trace_file, steps, numbers):
    code, told = shown(kvtrace, trace_file, "--steps", steps)
    assert code == 0
    assert [step["number"] for step in told["steps"]] == numbers


def test_what_holds_the_rows_and_the_line_that_attends_are_shown(kvtrace, tmp_path):
    meta = synthetic_trace().meta
    layers = tuple(
        replace(one, where=f"blocks.{one.index}.attn.k_cache [1, 40, 4, 8]")
        for one in meta.cache_layers
    )
    sites = tuple(replace(one, code="model.py:41") for one in meta.sites)
    path = tmp_path / "a.kvt"
    with TraceWriter(path, replace(meta, cache_layers=layers, sites=sites)) as writer:
        writer.end(Ending("done"))
    _, out, _ = kvtrace("show", path)
    more = f"; {len(layers) - 1} more like it"
    assert f"cache 0: held in blocks.0.attn.k_cache [1, 40, 4, 8]{more}" in out
    assert "model.py:41" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--step", 99), "step 99 is not in this trace"),
        (("--layer", 9), "layer 9"),
        (("--head", 4), "heads 0 to 3, not 4"),
        (("--sequence", 1), "1 sequence, not a sequence 1"),
        (("--lane", "referee"), "lanes are cached, recomputed, not referee"),
    ],
)
def test_a_place_that_a_whole_trace_does_not_have_is_a_wrong_usage(
    kvtrace, trace_file, options, message
):
    code, out, err = kvtrace("show", trace_file, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_step_that_an_incomplete_trace_does_not_have_is_exit_4(kvtrace, cut_file):
    code, out, err = kvtrace("show", cut_file, "--step", 99)
    assert (code, out) == (4, "")
    assert "step 99 is not in this trace" in err


def test_an_incomplete_trace_is_shown_with_exit_4(kvtrace, cut_file):
    code, out, err = kvtrace("show", cut_file)
    assert (code, err) == (4, "")
    assert "incomplete" in out
    code, told = shown(kvtrace, cut_file)
    assert code == 4
    assert told["complete"] is False
    assert told["ending"] is None
    assert 0 < told["num_steps"] < 7


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\0" * 5000, b"{}"])
@pytest.mark.parametrize("verb", ["show", "open", "info", "recover"])
def test_what_is_no_trace_is_exit_65(kvtrace, tmp_path, verb, content):
    path = tmp_path / "x.kvt"
    path.write_bytes(content)
    code, out, err = kvtrace(verb, path)
    assert (code, out) == (65, "")
    assert err.startswith("kvtrace: x.kvt")
    assert err.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(kvtrace, tmp_path):
    code, out, err = kvtrace("show", tmp_path / "none.kvt")
    assert (code, out) == (65, "")
    assert "No such file" in err


def test_without_a_terminal_open_prints_the_summary(kvtrace, trace_file):
    code, out, _ = kvtrace("open", trace_file, "--at", "3/1/2/keys")
    assert code == 0
    assert "step 3 computed 1 row" in out
    assert "step 3, layer 1, head 2" in out


def test_small_weights_keep_their_digits(kvtrace, tmp_path):
    shape = Shape(layers=1, heads=8, kv_heads=1, dim=1, prompt=1300, decode=1)
    trace = synthetic_trace(shape)
    path = write_trace(tmp_path / "long.kvt", trace)
    weights = [sorted(attention(trace, 1, 0, head).weights)[:-11:-1] for head in range(8)]
    head = min(range(8), key=lambda one: weights[one][0])  # it looks nearly everywhere alike
    _, out, _ = kvtrace("show", path, "--at", f"1/0/{head}")
    listed = out.partition("written in step")[2].split("\n")[1:11]
    assert [line.split()[0] for line in listed] == [f"{one:.1e}" for one in weights[head]]


def test_a_place_may_be_named_as_check_names_it(kvtrace, trace_file):
    spelled = ("--step", "3", "--layer", "1", "--head", "2", "--tensor", "keys")
    _, out, _ = kvtrace("show", trace_file, *spelled)
    assert kvtrace("show", trace_file, "--at", "3/1/2/k") == (0, out, "")
    assert kvtrace("show", trace_file, "--at", "5/1/0/k", "--step", "3", "--head", "2")[1] == out
    code, _, err = kvtrace("show", trace_file, "--at", "x")
    assert (code, "'x' is no place in a trace" in err) == (2, True)


def test_foreign_strings_reach_the_terminal_sanitised(kvtrace, tmp_path):
    base = synthetic_trace()
    source: MemorySource = base.source
    hostile = "\x1b]0;owned\x07\n\u202e[/foo]\ud800"
    source.texts = dict.fromkeys(range(12), hostile)
    path = write_trace(tmp_path / "h.kvt", Trace(_with_texts(source, hostile)))
    for verb in ("show", "info", "open"):
        code, out, err = kvtrace(verb, path)
        assert code == 0, err
        assert "owned" in out
        assert not any(ord(char) < 32 and char != "\n" for char in out)
        assert not any(char in out for char in "\u202e\ud800\x7f")
    _, told = shown(kvtrace, path)
    assert told["steps"][0]["text"][0][0] == hostile
    assert told["meta"]["prompt"] == hostile


def _with_texts(source, text):
    from msgspec.structs import replace

    source.meta = replace(source.meta, prompt=text)
    first = source.steps[0]
    source.steps[0] = replace(first, texts=dict.fromkeys(range(12), text))
    return source


def test_numbers_that_are_not_finite_are_named_and_absent_ones_are_null():
    told = plain({"a": [1.5, math.nan, -math.inf], "b": None, "c": np.float32(0.1)})
    assert told == {"a": [1.5, "NaN", "-Infinity"], "b": None, "c": 0.10000000149011612}
    assert json.dumps(told, allow_nan=False)


def test_values_become_objects_with_the_names_of_their_fields():
    assert plain(Flops(qkv=3))["qkv"] == 3
    assert plain(Tensor.KEYS) == "keys"
    with pytest.raises(TypeError, match="object"):
        plain(object())


def test_a_damaged_comparison_hides_nothing_of_its_step(kvtrace, trace_file, tmp_path):
    _, frames = split(trace_file)
    lane = next(frame for frame in frames if frame.kind == Kind.LANE)
    told = json.loads(lane.json)
    made = replace(lane, json=json.dumps({**told, "shape": [1, 4, 1]}).encode())
    kept = [made if one is lane else one for one in frames if one.kind != Kind.INDEX]
    path = tmp_path / "a.kvt"
    path.write_bytes(joined(pack_header(1), kept))
    code, out, err = kvtrace("show", path)
    assert (code, err) == (4, "")
    assert f"step {told['step']} (prefill) computed 5 rows" in out
    assert "recomputed: can't be read (a.kvt: step 0, comparison with" in out
    code, facts = shown(kvtrace, path)
    assert code == 4
    assert "computed 5 rows" in facts["steps"][0]["sentence"]
    assert "can't be" in facts["steps"][0]["compared"]["recomputed"]["unreadable"]


def test_a_damaged_file_is_shown_as_far_as_it_goes_and_never_crashes(kvtrace, trace_file, tmp_path):
    whole = trace_file.read_bytes()
    path = tmp_path / "d.kvt"
    codes = set()
    for offset in range(3, len(whole), 997):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x10
        path.write_bytes(damaged)
        for options in ((), ("--json",)):
            code, out, err = kvtrace("show", path, *options)
            codes.add(code)
            assert code in (0, 4, 65), err
            assert bool(out) == (code != 65)
            assert err.count("\n") == (code == 65)
    assert {4} <= codes


def test_a_place_takes_q_k_and_v_for_short():
    from kvtrace.cli.show.pick import parse

    assert parse("7/3/2/k") == parse("7/3/2/keys")
    assert parse("7/3/2/q").tensor == "queries"


def test_a_fifth_number_of_a_place_is_a_row_of_the_batch():
    from kvtrace.cli.show.pick import parse

    assert (parse("7/3/2/k/4").sequence, parse("7/3/2/k").sequence) == (4, 0)
    for text in ("7/3/2/k/x", "7/3/2/k/1/2", "7/3/2/4"):
        with pytest.raises(UsageError, match="a fifth number is a row of the batch"):
            parse(text)
