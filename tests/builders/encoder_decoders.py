"""Tiny encoder-decoders: some read text, one listens."""

from __future__ import annotations

import torch

from builders.ways import ready


def t5(seed=0):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=99,
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return ready(T5ForConditionalGeneration(config).eval())


def bart(seed=0, **others):
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=99, max_position_embeddings=64, forced_eos_token_id=None, **_sizes(), **others
    )
    return ready(BartForConditionalGeneration(config).eval())


def fsmt(seed=0):
    from transformers import FSMTConfig, FSMTForConditionalGeneration

    torch.manual_seed(seed)
    words = {"langs": ["en", "de"], "src_vocab_size": 99, "tgt_vocab_size": 99}
    config = FSMTConfig(max_position_embeddings=64, **words, **_sizes())
    return ready(FSMTForConditionalGeneration(config).eval())


def led(seed=0):
    from transformers import LEDConfig, LEDForConditionalGeneration

    torch.manual_seed(seed)
    config = LEDConfig(
        vocab_size=99,
        max_encoder_position_embeddings=64,
        max_decoder_position_embeddings=64,
        attention_window=8,
        decoder_start_token_id=2,
        **_sizes(),
    )
    return ready(LEDForConditionalGeneration(config).eval())


def whisper(seed=0):
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=99,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=40,
        decoder_start_token_id=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **_sizes(),
    )
    model = ready(WhisperForConditionalGeneration(config).eval())
    model.generation_config.max_length = None
    return model


def speecht5(seed=0):
    from transformers import SpeechT5Config, SpeechT5ForSpeechToText

    torch.manual_seed(seed)
    sizes = {name: size for name, size in _sizes().items() if name != "d_model"}
    config = SpeechT5Config(
        vocab_size=99,
        hidden_size=32,
        conv_dim=[16, 16],
        conv_stride=[5, 2],
        conv_kernel=[10, 3],
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        apply_spec_augment=False,
        decoder_start_token_id=5,
        **sizes,
    )
    return ready(SpeechT5ForSpeechToText(config).eval())


def _sizes():
    return {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 37,
        "decoder_ffn_dim": 37,
    }


READERS = {"t5": t5, "bart": bart}
BY_WINDOWS = {"led": led}
"""Their encoders multiply blocks of a window with each other, which is not seen as attention."""

LISTENERS = {"whisper": whisper}
