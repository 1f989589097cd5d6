"""Lanes of models that need more than tokens: images, kinds of tokens, an encoder's output."""

import pytest
import torch
from torch import nn

import kvtrace
from builders.encoder_decoders import LISTENERS, READERS
from builders.recorded import record
from builders.seeing import IMAGE, SEEING, pixels
from builders.tiny_models import tiny_config, tiny_model
from builders.ways import ready
from kvtrace.analysis.checks import EQUAL, UNCHECKED, check
from kvtrace.record.capture.attention.kinds import kind_of


def generate(model, **asked):
    with torch.no_grad():
        return model.generate(max_new_tokens=5, do_sample=False, **asked)


@pytest.mark.parametrize("name", SEEING)
def test_a_model_that_looks_at_an_image_is_compared_with_that_image(name, tmp_path):
    model, ids, asked = SEEING[name]()
    trace, _, _ = record(
        model,
        lambda: generate(model, input_ids=ids, **asked),
        tmp_path / "a.kvt",
        recompute="once",
        referee=True,
    )
    report = check(trace)
    assert [(one.name, one.evidence) for one in report.findings] == []
    assert report.verdict == "equal within rounding", report.reason
    assert all(trace.compared(n, lane) for n in trace.numbers for lane in ("recomputed", "referee"))


@pytest.mark.parametrize("name", SEEING)
def test_beams_that_look_at_an_image_are_compared_each_with_its_own(name, tmp_path):
    model, ids, asked = SEEING[name]()
    with kvtrace.record(model, tmp_path / "a.kvt"):
        generate(model, input_ids=ids, num_beams=3, **asked)
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.findings, report.steps) == (EQUAL, (), 5), report.reason


def turns(model, sequences, *images):
    """A turn with each image, or None, and a token behind it, all in one cache that is returned."""
    cache, seen = None, [IMAGE] * 4
    for number, image in enumerate(images):
        ids = torch.tensor([[9 + number, *(seen if image is not None else []), 5]] * sequences)
        asked = {} if image is None else {"pixel_values": image}
        cache = model(input_ids=ids, past_key_values=cache, **asked).past_key_values
        model(input_ids=ids[:, -1:] + 1, past_key_values=cache)
    return cache


@pytest.mark.parametrize("mode", ["once", "each"])
@pytest.mark.parametrize("sequences", [1, 2])
@pytest.mark.parametrize("begins", [pixels, lambda count: None])
def test_images_of_later_turns_are_looked_at_behind_those_before(begins, sequences, mode, tmp_path):
    model, *_ = SEEING["llava"]()
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute=mode):
        turns(model, sequences, begins(sequences), pixels(sequences, 2), pixels(sequences, 3))
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.findings, report.steps) == (EQUAL, (), 6), report.reason


def test_a_turn_that_is_taken_back_takes_its_image_along(tmp_path):
    model, *_ = SEEING["llava"]()
    ids = torch.tensor([[8, *[IMAGE] * 4, 5]])
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        cache = turns(model, 1, pixels(1))
        for seed in (2, 3):
            model(input_ids=ids, pixel_values=pixels(1, seed), past_key_values=cache)
            cache.crop(-ids.shape[1])
    report = check(kvtrace.open(tmp_path / "a.kvt"))
    assert (report.verdict, report.findings, report.steps) == (EQUAL, (), 4), report.reason


def test_an_image_that_is_encoded_ahead_of_the_model_is_said_and_called_no_miss(tmp_path):
    model, ids, asked = SEEING["gemma3"]()
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        generate(model, input_ids=ids, **asked)
    meta = kvtrace.open(tmp_path / "a.kvt").meta
    assert meta.unseen == ()
    tower = "model.vision_tower.encoder.layers.0.self_attn and 3 more"
    said = f"{tower}: attended before the model was called, as encoders of images do; "
    assert f"{said}that is not recorded" in meta.not_recorded


def test_what_attends_between_calls_of_a_model_is_said_to(tmp_path):
    model, ids = tiny_model("llama"), torch.tensor([[5, 6, 7]])
    model.side = type(model)(
        type(model.config)(**tiny_config("llama").to_dict() | {"num_hidden_layers": 1})
    )
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        cache = model(ids).past_key_values
        model.side(ids)
        model(ids[:, :1], past_key_values=cache)
    meta = kvtrace.open(tmp_path / "a.kvt").meta
    assert meta.unseen == ()
    said = "attended between calls of the model, and in none of them; that is not recorded"
    assert f"side.model.layers.0.self_attn: {said}" in meta.not_recorded


def test_what_a_caller_does_to_its_tensors_afterwards_reaches_no_lane(tmp_path):
    model, ids, asked = SEEING["gemma3"]()

    def run():
        generate(model, input_ids=ids, **asked)
        asked["token_type_ids"].zero_()

    trace, _, _ = record(model, run, tmp_path / "a.kvt", recompute="once")
    assert check(trace).findings == ()


READS = {
    "t5": lambda: (READERS["t5"](), {"input_ids": torch.arange(3, 12)[None]}),
    "whisper": lambda: (LISTENERS["whisper"](), {"input_features": torch.ones(1, 8, 40)}),
}


@pytest.mark.parametrize("name", READS)
def test_the_referee_reads_an_encoders_output_in_its_own_dtype(name, tmp_path):
    model, asked = READS[name]()
    run = lambda: generate(model, **asked)  # noqa: E731
    trace, _, _ = record(model, run, tmp_path / "a.kvt", recompute="once", referee=True)
    last = trace.numbers[-1]
    assert trace.compared(last, "referee") is not None
    assert [note.text for note in trace.notes if "referee" in note.text] == []


def led():
    from transformers import LEDConfig, LEDForConditionalGeneration

    torch.manual_seed(0)
    config = LEDConfig(
        vocab_size=99,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        max_encoder_position_embeddings=64,
        max_decoder_position_embeddings=64,
        attention_window=4,
        decoder_start_token_id=1,
    )
    return ready(LEDForConditionalGeneration(config).eval())


def test_a_decoder_is_compared_where_nobody_saw_its_encoder_attend(tmp_path):
    model = led()
    ids = torch.arange(3, 15)[None]
    trace, _, _ = record(
        model, lambda: generate(model, input_ids=ids), tmp_path / "a.kvt", recompute="once"
    )
    assert any("encoder" in sentence for sentence in trace.meta.unseen)
    report = check(trace)
    assert report.verdict == "equal within rounding", report.reason


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("encoder.encoder.layer.0.attention.self", "encoder"),
        ("decoder.bert.encoder.layer.0.attention.self", "self"),
        ("decoder.bert.encoder.layer.0.crossattention.self", "cross"),
        ("model.decoder.layers.0.self_attn", "self"),
        ("model.encoder.layers.0.self_attn", "encoder"),
    ],
)
def test_a_decoder_may_call_its_layers_an_encoder(path, kind):
    assert kind_of(path, two_sided=True) == kind


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("cpmant", "not recomputed: 11 ids were given for 15 rows: which row is which token's"),
        (
            "xlnet",
            "`perm_mask` and `target_mapping` of its first step fit no other number of tokens: "
            "they say which of its 12 see which, and nothing of the ",
        ),
    ],
)
def test_a_lane_that_can_not_be_computed_says_why(model_type, said, tmp_path):
    model = tiny_model(model_type)
    ids = torch.arange(3, 14)[None]
    trace, _, _ = record(
        model, lambda: generate(ready(model), input_ids=ids), tmp_path / "a.kvt", recompute="once"
    )
    assert trace.meta.lanes == ()
    assert any(said in note.text for note in trace.notes)
    assert not any("Error" in note.text for note in trace.notes)


@pytest.mark.parametrize("mode", ["once", "each"])
def test_branches_that_are_fed_at_once_are_called_no_text(tmp_path, mode):
    trace = branching(tmp_path / "a.kvt", [[0], [0, 1], [2], [2, 3]], recompute=mode)
    report = check(trace)
    assert (report.verdict, report.findings) == (UNCHECKED, ())
    assert trace.compared(0) is not None
    assert "step 1 is the first that was not" in report.reason
    assert any("fed several branches of the text at once" in note.text for note in trace.notes)


def test_positions_that_are_counted_twice_by_tokens_that_see_each_other_are_a_bug(tmp_path):
    trace = branching(tmp_path / "a.kvt", [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]])
    assert check(trace).findings[0].name == "POSITION-ROPE"


def branching(path, sees, **wishes):
    """Six tokens, then two and two that stand side by side; each sees those of its list."""
    model = tiny_model("llama")
    shown = torch.zeros(1, 1, 4, 10, dtype=torch.bool)
    shown[..., :6] = True
    for place, others in enumerate(sees):
        shown[0, 0, place, [6 + other for other in others]] = True
    places = torch.tensor([[6, 7, 6, 7]])
    with torch.no_grad(), kvtrace.record(model, path, **wishes):
        cache = model(torch.tensor([[5, 6, 7, 8, 9, 10]])).past_key_values
        drafts = {"attention_mask": shown, "position_ids": places, "past_key_values": cache}
        model(torch.tensor([[11, 12, 13, 14]]), **drafts)
    return kvtrace.open(path)


@pytest.mark.parametrize("mode", ["once", "each"])
def test_texts_that_are_packed_in_one_row_are_counted_as_they_were_given(tmp_path, mode):
    model = tiny_model("llama")
    places = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    with kvtrace.record(model, tmp_path / "a.kvt", recompute=mode), torch.no_grad():
        model(torch.arange(5, 17)[None], position_ids=places, use_cache=False)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert not trace.visible(0, 0)[:, 5:, :5].any()
    found = trace.compared(0)
    assert (found.relative <= trace.meta.lane("recomputed").tolerance).all()
    assert check(trace).findings == ()


class OneAtATime(nn.Module):
    """Its shapes are those of one token, and it keeps its rows inside."""

    def __init__(self):
        super().__init__()
        self.tokens, self.qkv, self.head = nn.Embedding(9, 8), nn.Linear(8, 24), nn.Linear(8, 9)
        self.rows = []

    def forward(self, token):
        q, *new = (x.view(1, 1, 1, 8) for x in self.qkv(self.tokens(token)).chunk(3, -1))
        self.rows.append(new)
        k, v = (torch.cat(rows, 2) for rows in zip(*self.rows, strict=True))
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v).view(1, 1, 8))


def test_a_model_of_one_token_at_a_time_is_said_to_have_nothing_to_compare_with(tmp_path):
    model = OneAtATime().eval()
    with torch.no_grad(), kvtrace.record(model, tmp_path / "one.kvt"):
        for token in (3, 1, 4):
            model(torch.tensor([[token]]))
    (note,) = kvtrace.open(tmp_path / "one.kvt").notes
    assert "the model was given one token at a time, and no call with all of them" in note.text
