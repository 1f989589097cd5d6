"""Tiny models that look at an image and go on with text, and what each is asked with."""

from __future__ import annotations

import torch

from builders.ways import ready

IMAGE, BEGINS, ENDS = 150, 151, 152
LOOKS = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 4,
}
READS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 160,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def gemma3():
    """Tokens of one image see each other, in both directions."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = READS | {
        "head_dim": 16,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    config = Gemma3Config(
        vision_config=LOOKS | {"image_size": 16},
        text_config=text,
        image_token_index=IMAGE,
        boi_token_index=BEGINS,
        eoi_token_index=ENDS,
        mm_tokens_per_image=4,
    )
    ids = _ids(2)
    asked = {"pixel_values": _pixels(1, 3, 16, 16), "token_type_ids": (ids == IMAGE).long()}
    return _built(Gemma3ForConditionalGeneration, config), ids, asked


def paligemma():
    """The whole prompt sees itself, in both directions; what is generated does not."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    looks = {"model_type": "siglip_vision_model", "projection_dim": 64, "image_size": 8}
    config = PaliGemmaConfig(
        vision_config=LOOKS | looks,
        text_config=READS | {"model_type": "gemma", "head_dim": 16},
        image_token_index=IMAGE,
        projection_dim=64,
    )
    ids = _ids(0)
    asked = {"pixel_values": _pixels(1, 3, 8, 8), "token_type_ids": torch.zeros_like(ids)}
    return _built(PaliGemmaForConditionalGeneration, config), ids, asked


def qwen2_vl(depth=2):
    """Rows of an image have positions of three axes."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    looks = {
        "depth": depth,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        vision_config=looks,
        text_config=READS | {"rope_parameters": rope},
        image_token_id=IMAGE,
        vision_start_token_id=BEGINS,
        vision_end_token_id=ENDS,
        video_token_id=153,
    )
    ids = _ids(2)
    ids[0, 1], ids[0, 6] = BEGINS, ENDS
    asked = {
        "pixel_values": _pixels(16, 96),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "attention_mask": torch.ones_like(ids),
    }
    return _built(Qwen2VLForConditionalGeneration, config), ids, asked


def mllama():
    """Every other layer reads the image by cross attention, token by token as a mask says."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    looks = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "image_size": 8,
        "patch_size": 4,
        "vision_output_dim": 64,
        "max_num_tiles": 1,
        "intermediate_layers_indices": [1],
        "supported_aspect_ratios": [[1, 1]],
    }
    config = MllamaConfig(
        vision_config=looks,
        text_config=READS | {"num_hidden_layers": 4, "cross_attention_layers": [1, 3]},
        image_token_index=IMAGE,
    )
    ids = _ids(1, 1)
    asked = {
        "pixel_values": _pixels(1, 1, 1, 3, 8, 8),
        "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(1, 1, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(1, ids.shape[1], 1, 1, dtype=torch.long),
    }
    return _built(MllamaForConditionalGeneration, config), ids, asked


def llava():
    """Rows of images stand in the places of their tokens, and are rows as any."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    looks = {"model_type": "clip_vision_model", "projection_dim": 32, "image_size": 8}
    config = LlavaConfig(
        vision_config=LOOKS | looks,
        text_config=READS | {"model_type": "llama"},
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    return _built(LlavaForConditionalGeneration, config), _ids(1), {"pixel_values": pixels(1)}


def pixels(count, seed=1):
    """Images for `llava`."""
    return _pixels(count, 3, 8, 8, seed=seed)


SEEING = {
    "llava": llava,
    "gemma3": gemma3,
    "paligemma": paligemma,
    "qwen2_vl": qwen2_vl,
    "mllama": mllama,
}


def _built(cls, config):
    torch.manual_seed(0)
    return ready(cls._from_config(config).eval())


def _ids(first, count=4):
    """A prompt with an image in it."""
    ids = torch.randint(3, 90, (1, 11), generator=torch.Generator().manual_seed(0))
    ids[0, first : first + count] = IMAGE
    return ids


def _pixels(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
