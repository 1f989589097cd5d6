"""Classes outside transformers say themselves what a step is given, and keep tuples as a cache."""

import importlib
import sys

import pytest
import torch
from transformers import LlamaForCausalLM

import kvtrace
from builders.driven import forgotten
from builders.people import HERE
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks import EQUAL, check
from kvtrace.errors import ModelError
from kvtrace.models.caching import check_caches
from kvtrace.record.decode import Limits, Standard, decode
from kvtrace.record.prepared import positions_of

PROMPT, STEPS = list(b"hello"), 7


@pytest.fixture(params=["build", "build_outdated"])
def trace(request, tmp_path):
    path = tmp_path / "prepared.kvt"
    with forgotten():
        sys.path.insert(0, str(HERE))
        model = getattr(importlib.import_module("hub_prepared"), request.param)().eval()
        with kvtrace.record(model, path, recompute="each"):
            decode(model, PROMPT, limits=Limits(STEPS))
    return kvtrace.open(path)


def test_its_cached_steps_are_those_of_a_pass_over_all_tokens(trace):
    report = check(trace)
    assert (report.verdict, report.steps) == (EQUAL, STEPS)


def test_a_cache_made_anew_of_tuples_goes_on_with_their_rows(trace):
    assert [one.kind for one in trace.meta.cache_layers] == ["dynamic"] * 2
    for number in range(1, STEPS):
        (group,) = trace.step(number).caches
        rows = group.length_before, group.length_after, group.rewritten
        assert (group.layers, rows) == ((0, 1), (4 + number, 5 + number, 0))


@pytest.mark.parametrize(
    "kind", ["bamba", "bloom", "camembert", "cpmant", "gpt2", "llama", "opt", "recurrent_gemma"]
)
def test_the_text_is_the_one_that_generate_makes(kind):
    # some classes count positions from 0 in every step where they are given none
    model, made = tiny_model(kind), []
    model.generation_config.pad_token_id = 0
    ids = torch.randint(5, 60, (1, 9), generator=torch.Generator().manual_seed(1))
    text = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    decode(model, ids[0].tolist(), limits=Limits(6), on_token=made.append)
    assert made == text[0, 9:].tolist()


def test_somebodys_own_class_counts_its_positions_itself():
    class Own(LlamaForCausalLM):
        def forward(self, *args, position_ids=None, **kwargs):
            told.append(position_ids)
            return super().forward(*args, position_ids=position_ids, **kwargs)

    model, told = Own(tiny_model("llama").config).eval(), []
    decode(model, [5, 6, 7], limits=Limits(2))
    assert told == [None, None]


def test_positions_that_only_generate_gives_are_given(tmp_path):
    with kvtrace.record(model := tiny_model("bamba"), tmp_path / "a.kvt"):
        decode(model, list(range(5, 12)), limits=Limits(4))
    assert check(kvtrace.open(tmp_path / "a.kvt")).verdict == EQUAL


def test_positions_are_as_a_class_of_transformers_prepares_them():
    from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration
    from transformers.models.kosmos2_5 import Kosmos2_5TextConfig
    from transformers.models.kosmos2_5.modeling_kosmos2_5 import Kosmos2_5TextForCausalLM

    ids = torch.tensor([[5, 6, 7]])
    told = Kosmos2_5TextConfig(
        vocab_size=32, embed_dim=16, layers=1, attention_heads=2, ffn_dim=16
    )  # it counts by itself, from where its padding ends
    assert positions_of(Kosmos2_5TextForCausalLM(told))(ids) is None
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = GemmaConfig(
        vocab_size=32, head_dim=8, num_key_value_heads=1, intermediate_size=16, **sizes
    )
    eyes = {"model_type": "siglip_vision_model", "intermediate_size": 16, **sizes}
    seeing = PaliGemmaConfig(text_config=text, vision_config=eyes, projection_dim=16)
    found = positions_of(PaliGemmaForConditionalGeneration(seeing))(ids)
    assert found.tolist() == [[1, 2, 3]]


def test_a_model_that_asks_for_a_picture_says_which_argument():
    from transformers import BlipConfig, BlipForConditionalGeneration

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 32, "intermediate_size": 16, "encoder_hidden_size": 16, **sizes}
    eyes = {"intermediate_size": 16, "image_size": 28, "patch_size": 14, **sizes}
    config = BlipConfig(text_config=text, vision_config=eyes, projection_dim=16)
    model = BlipForConditionalGeneration(config).eval()
    with pytest.raises(ModelError, match="asks for pixel_values beside the tokens"):
        decode(model, [5, 6, 7], limits=Limits(2))


def test_a_cache_that_is_filled_and_not_handed_back_is_kept(tmp_path):
    with kvtrace.record(model := tiny_model("recurrent_gemma"), tmp_path / "a.kvt"):
        decode(model, PROMPT, limits=Limits(4))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.new for step in trace] == [5, 1, 1, 1]
    assert check(trace).verdict == EQUAL


def test_a_state_on_its_modules_is_not_that_of_a_recomputed_pass(tmp_path):
    model, made = tiny_model("recurrent_gemma"), []
    ids = torch.tensor([PROMPT])
    asked = {"max_new_tokens": 4, "do_sample": False, "output_scores": True}
    for mode in ("off", "each"):
        with kvtrace.record(model, tmp_path / f"{mode}.kvt", recompute=mode):
            found = model.generate(ids, return_dict_in_generate=True, **asked)
        made.append(torch.stack(found.scores))
    assert torch.equal(*made)
    assert check(kvtrace.open(tmp_path / "each.kvt")).verdict == EQUAL


def test_a_model_that_fails_on_tokens_alone_says_so():
    # its decoder reads four codes of a sound at a time
    with pytest.raises(ModelError, match="MusicgenForCausalLM fails on token ids alone"):
        decode(tiny_model("musicgen"), [5, 6, 7], limits=Limits(2))


def test_a_model_that_a_wrong_field_of_its_configuration_breaks_says_where_to_look():
    model = tiny_model("llama")
    model.config.sliding_window = [5]
    with pytest.raises(ModelError, match="a field of its configuration may be wrong"):
        decode(model, [5, 6, 7], limits=Limits(2))


def test_several_models_in_one_without_a_forward_are_named():
    class Joined(torch.nn.Module):
        pass

    with pytest.raises(ModelError, match="Joined has no forward: it joins several models"):
        check_caches(Joined())


def test_a_chunk_is_fed_whole_to_a_class_that_prepares_single_tokens(tmp_path):
    path = tmp_path / "chunks.kvt"
    with forgotten():
        sys.path.insert(0, str(HERE))
        model = importlib.import_module("hub_prepared").build().eval()
        with kvtrace.record(model, path):
            drive = Standard(model)
            for end in (3, 6, 10, 11):
                drive.step(list(range(5, 5 + end)))
    trace = kvtrace.open(path)
    assert [step.new for step in trace] == [3, 3, 4, 1]
    assert trace.step(2).positions == ((6, 7, 8, 9),)
    report = check(trace)
    assert (report.verdict, report.steps) == (EQUAL, 4)


@pytest.fixture(params=["of_counting", "of_lists"])
def own_cache(request):
    with forgotten():
        sys.path.insert(0, str(HERE))
        yield getattr(importlib.import_module("hub_own_caches"), request.param)().eval()


def test_a_cache_that_only_the_preparation_makes_is_one(own_cache):
    check_caches(own_cache)


def test_a_cache_that_only_the_preparation_makes_is_gone_on_with(own_cache, tmp_path):
    with kvtrace.record(own_cache, tmp_path / "a.kvt"):
        decode(own_cache, PROMPT, limits=Limits(STEPS))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.new for step in trace] == [5, 1, 1, 1, 1, 1, 1]
    report = check(trace)
    assert (report.verdict, report.steps) == (EQUAL, STEPS)


def test_attention_that_a_name_alone_calls_crossing_is_to_its_own_text(own_cache, tmp_path):
    with kvtrace.record(own_cache, tmp_path / "a.kvt"):
        decode(own_cache, PROMPT, limits=Limits(3))
    sites = kvtrace.open(tmp_path / "a.kvt").meta.sites
    assert [(one.module, one.kind) for one in sites] == [
        ("inner_cross_attn.0", "self"),
        ("inner_cross_attn.1", "self"),
    ]


def test_a_chunk_is_not_fed_where_the_cache_was_told_of_its_last_token_alone():
    with forgotten():
        sys.path.insert(0, str(HERE))
        drive = Standard(importlib.import_module("hub_own_caches").of_counting().eval())
        drive.step(PROMPT[:2])
        with pytest.raises(ModelError, match="OfCounting prepares one token at a time"):
            drive.step(PROMPT)
