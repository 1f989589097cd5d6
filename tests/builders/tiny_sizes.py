"""Sizes that make any configuration of transformers tiny, and what single types need besides.

Facts about other people's configuration classes, nothing else: `tiny_models` uses them.
"""

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, VOCAB = 64, 4, 4, 2, 16, 96, 160

DELETE = "delete this key"


def _same(value, names):
    return dict.fromkeys(names.split(), value)


SIZES = {
    **_same(
        HIDDEN,
        "hidden_size d_model n_embd dim embed_dim embedding_size emb_dim decoder_hidden_size "
        "word_embed_proj_dim input_hidden_size width model_dim lru_width hidden_size_global",
    ),
    **_same(
        LAYERS,
        "num_hidden_layers n_layer num_layers n_layers decoder_layers encoder_layers "
        "num_decoder_layers num_encoder_layers",
    ),
    **_same(
        HEADS,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads "
        "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads",
    ),
    **_same(KV_HEADS, "num_key_value_heads n_head_kv num_kv_heads kv_n_heads"),
    **_same(
        HEAD_DIM,
        "head_dim attention_head_size attention_head_dim kv_channels d_kv dim_head v_head_dim "
        "mamba_d_head mamba_head_dim linear_key_head_dim linear_value_head_dim index_head_dim "
        "kv_lora_rank hidden_size_per_layer_input",
    ),
    **_same(
        FEED_FORWARD,
        "intermediate_size ffn_dim n_inner d_ff dff ffn_hidden_size dim_ff decoder_ffn_dim "
        "encoder_ffn_dim feed_forward_size d_inner intermediate_size_mlp",
    ),
    **_same(
        32,
        "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
        "expert_ffn_hidden_size q_lora_rank",
    ),
    **_same(VOCAB, "vocab_size unpadded_vocab_size decoder_vocab_size vocab_size_per_layer_input"),
    **_same(
        128,
        "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions "
        "max_source_positions",
    ),
    **_same(4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    **_same(
        2,
        "num_experts_per_tok moe_topk moe_k top_k_experts num_experts_per_token depth "
        "type_vocab_size mamba_expand linear_num_key_heads index_n_heads",
    ),
    **_same(1, "n_shared_experts n_group topk_group num_expert_group mamba_n_groups"),
    **_same(
        8,
        "qk_rope_head_dim qk_nope_head_dim sliding_window attention_chunk_size window_size "
        "attention_window_size mamba_d_state mamba_n_heads state_size ssm_state_size "
        "mamba_num_heads mamba_chunk_size chunk_size time_step_rank",
    ),
    "linear_num_value_heads": 4,
    "index_topk": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}

# Where the default is None, "none" is part of the architecture and stays.
KEEP_NONE = _same(
    None,
    "sliding_window attention_chunk_size window_size q_lora_rank kv_lora_rank num_experts "
    "num_local_experts n_routed_experts head_dim num_key_value_heads n_inner moe_num_experts "
    "attention_window_size chunk_size decoder_vocab_size decoder_start_token_id",
)

_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_HYBRID, _INDEXED = "hybrid", "indexed_attention"
_MLA = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "head_dim": 8, "v_head_dim": 16}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

OVERRIDES = {
    "axk1": _MLA,
    "bailing_hybrid": {
        "num_hidden_layers": 4,
        "layer_types": [_LINEAR, _LINEAR, _LINEAR, _FULL],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        **_MLA,
    },
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {
        "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
        "rope_parameters": {_SLIDING: _ROPE, _FULL: _ROPE},
    },
    "cpmant": {
        "max_position_embeddings": DELETE,
        "prompt_length": 4,
        "prompt_types": 4,
        "segment_types": 4,
        "position_bias_num_buckets": 8,
        "position_bias_max_distance": 64,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {
            "hidden_size": 64,
            "ffn_hidden_size": 32,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "deepseek_v3": _MLA,
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "head_dim": 16,
    },
    "dots3_note_text": {
        "layer_types": [_INDEXED, _SLIDING, _INDEXED, _SLIDING],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "shared_experts_intermediate_size": 32,
        "index_head_dim": 16,
        "index_n_heads": 2,
        **_MLA,
        "head_dim": 16,
        "per_layer_config": None,
    },
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": [_SLIDING, _FULL] * 3,
        "intermediate_size": [96] * 6,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0],
        "laurel_rank": 8,
        "hidden_size_per_layer_input": 16,
    },
    "gemma4_text": {
        "num_hidden_layers": 6,
        "layer_types": [_SLIDING, _FULL] * 3,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 16,
        "global_head_dim": 16,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": [_LINEAR, _FULL] * 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "kimi_linear": {
        "layer_types": [_LINEAR, _LINEAR, _LINEAR, _FULL],
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "num_experts": 4,
        "num_experts_per_token": 2,
    },
    "lfm2_moe": {
        "layer_types": ["conv", _FULL] * 2,
        "num_dense_layers": 1,
        "num_experts": 4,
        "moe_intermediate_size": 32,
    },
    "longcat_flash": {
        **_MLA,
        "num_layers": 2,
        "zero_expert_num": 2,
        "n_routed_experts": 4,
        "num_hidden_layers": 4,
        "moe_topk": 2,
        "expert_ffn_hidden_size": 32,
    },
    "mamba2": {
        "num_heads": 8,
        "head_dim": 16,
        "expand": 2,
        "n_groups": 1,
        "state_size": 8,
        "chunk_size": 8,
    },
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "qwen4_exp_text": {
        "layer_types": [_LINEAR, _LINEAR, _LINEAR, _INDEXED],
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 16,
        "ple_embed_dim": 64,
        "ngram_vocab_size_base": 200,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 8,
    },
    "reformer": {
        "axial_pos_embds_dim": (32, 32),
        "axial_pos_shape": (8, 16),
        "attn_layers": ("local", "lsh"),
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_hidden_layers": 2,
        "num_buckets": 4,
        "attention_head_size": 16,
        "num_attention_heads": 4,
    },
    "xlstm": {
        "num_heads": 4,
        "num_blocks": 4,
        "embedding_dim": 64,
        "qk_dim_factor": 1.0,
        "v_dim_factor": 1.0,
    },
    "xmod": {"default_language": "en_XX"},
    "youtu": _MLA,
    "zamba": {
        "num_hidden_layers": 6,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 8,
        "layers_block_type": [_LINEAR, _HYBRID, _LINEAR] * 2,
    },
    "zamba2": {
        "num_hidden_layers": 6,
        "layers_block_type": [_LINEAR, _HYBRID, _LINEAR] * 2,
        "n_mamba_heads": 8,
        "chunk_size": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "adapter_rank": 8,
        **_same(
            DELETE,
            "attention_hidden_size attention_head_dim mamba_headdim kv_channels "
            "num_query_groups head_dim",
        ),
    },
    "zaya": {
        "layer_types": [_HYBRID] * 4,
        "num_experts_per_tok": 1,
        "router_hidden_size": 16,
        "head_dim": 16,
    },
    "gemma4_assistant": {
        "text_config": {
            "num_hidden_layers": 4,
            "layer_types": [_SLIDING, _SLIDING, _SLIDING, _FULL],
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "global_head_dim": 16,
        },
        "backbone_hidden_size": 64,
    },
}
for _whole in ("dots3_note", "gemma3n", "gemma4", "qwen4_exp"):
    OVERRIDES[_whole] = {"text_config": OVERRIDES[f"{_whole}_text"]}
OVERRIDES["dots3_note"] |= {
    "vision_config": {
        "pyramid_num_routed": [-1, -1, 4, 4],
        "hidden_size": 64,
        "adapter_in_dim": 64,
        "adapter_out_dim": 64,
    },
    "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
}
