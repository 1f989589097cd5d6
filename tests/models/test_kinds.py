"""Directories of models that are more than a causal language model, and which class loads them."""

import json

import pytest

from builders.encoder_decoders import bart, whisper
from builders.tiny_models import tiny_model
from kvtrace.models.hub.decoders import auto_class


def test_an_encoder_that_hears_is_refused_by_what_it_reads(child, tmp_path):
    whisper().save_pretrained(tmp_path / "listener")
    loaded = child.load(str(tmp_path / "listener"), prompt="hello")
    assert loaded.message.startswith(
        "config.json: the encoder of WhisperForConditionalGeneration reads input_features, a "
        "prompt is text"
    )


def test_an_encoder_decoder_has_its_context_for_what_it_decodes(child, tmp_path):
    bart().save_pretrained(tmp_path / "reader")
    loaded = child.load(str(tmp_path / "reader"), prompt="5 9 30 7 81", new_tokens=64)
    assert (loaded.error, loaded.new_tokens) == ("", 64)


def test_decoders_that_see_or_hear_read_text_alone(child, tmp_path):
    seeing(tmp_path / "seeing")
    told = json.loads((tmp_path / "seeing" / "config.json").read_text())
    assert told["vision_feature_layer"] == -2  # counted from the end, not a count
    loaded = child.load(str(tmp_path / "seeing"), prompt="hello", new_tokens=2)
    assert (loaded.error, loaded.card["class_name"]) == ("", "LlavaForConditionalGeneration")
    hearing(tmp_path / "hearing")
    loaded = child.load(str(tmp_path / "hearing"), prompt="hello", new_tokens=2)
    assert (loaded.error, loaded.card["class_name"]) == ("", "Qwen2AudioForConditionalGeneration")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("mllama", "MllamaForCausalLM"),  # saved as a part that no auto class leads to
        ("gemma4_unified", "Gemma4UnifiedForConditionalGeneration"),  # sizes differ by layer
    ],
)
def test_a_directory_is_loaded_by_the_class_that_it_names(child, tmp_path, kind, name):
    tiny_model(kind).save_pretrained(tmp_path / kind)
    loaded = child.load(str(tmp_path / kind), prompt="hello", new_tokens=2)
    assert (loaded.error, loaded.card["class_name"]) == ("", name)


def test_a_class_that_no_auto_class_leads_to_decodes_by_its_own_name():
    from transformers import EvollaConfig

    config = EvollaConfig(architectures=["EvollaForProteinText2Text"])
    assert config.is_decoder is False  # as all configurations say that once were told by it
    assert auto_class(config).kind.__name__ == "EvollaForProteinText2Text"


def test_an_encoder_decoder_of_no_auto_class_is_one_all_the_same():
    from transformers import EncodecConfig, MusicgenConfig, MusicgenDecoderConfig, T5Config

    parts = {"text_encoder": T5Config(), "audio_encoder": EncodecConfig()}
    made = MusicgenConfig(decoder=MusicgenDecoderConfig().to_dict(), **parts)
    made.architectures = ["MusicgenForConditionalGeneration"]
    assert auto_class(made).kind.__name__ == "MusicgenForConditionalGeneration"


def seeing(folder):
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    eyes = CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=16, **_sizes(4))
    text = LlamaConfig(vocab_size=300, **_sizes(4))
    config = LlavaConfig(vision_config=eyes, text_config=text, image_token_index=299)
    LlavaForConditionalGeneration(config).save_pretrained(folder)


def hearing(folder):
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioEncoderConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2Config,
    )

    ears = Qwen2AudioEncoderConfig(
        d_model=16, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=16
    )
    text = Qwen2Config(vocab_size=300, num_key_value_heads=4, **_sizes(4))
    config = Qwen2AudioConfig(audio_config=ears, text_config=text, audio_token_index=299)
    Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)


def _sizes(heads):
    return {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
    }
