"""Corrections to the generic configurations and classes of `small_models.py`, by model type."""

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 32}
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
_COMPASS = {"sliding_attention": _SECTIONS, "full_attention": _SECTIONS}
_MOE_TEXT = {"n_shared_experts": 1, "mlp_layer_types": ["dense", "sparse"]}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_GEMMA3N = {
    "num_hidden_layers": 4,
    "layer_types": _ALTERNATING,
    "intermediate_size": [256] * 4,
    "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    "num_kv_shared_layers": 2,
}
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 32,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
_WAV2VEC2 = {"vocab_size": 256, "conv_dim": [32] * 7, "position_embeddings_type": "rotary"}
_DOTS3 = {"head_dim": 64}
_GEMMA4_MOE = {"moe_intermediate_size": 64, "num_experts": 8, "top_k_experts": 2}


def _in(part, fields):
    return {f"{part}.{name}": value for name, value in fields.items()}


CONFIGS = {  # {type: {"path.of.field": value}}
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "blt": {
        "encoder_config.hidden_size_global": 128,
        "decoder_config.hidden_size_global": 128,
        "encoder_hash_byte_group_vocab": 1000,
    },
    "chameleon": {"vocabulary_map": {"<image>": 200, "A": 10}},
    "cohere_compass": _in("text_config", {"rope_parameters": _COMPASS}),
    "cohere_compass_text": {"rope_parameters": _COMPASS},
    "dbrx": {"attn_config.clip_qkv": 8.0, "attn_config.rope_theta": 10000.0, "ffn_config.hidden_size": 128},
    "deepseek_ocr2": _in("text_config", _MOE_TEXT),
    "deepseek_ocr2_vision": {"sam_config.downsample_channels": [64, 128]},
    "deepseek_ocr2_text": _MOE_TEXT,
    "diffusion_gemma": _in("text_config", _GEMMA4_MOE),
    "diffusion_gemma_text": _GEMMA4_MOE,
    "dots1": {"n_shared_experts": 1, "moe_intermediate_size": 64, "first_k_dense_replace": 1},
    "dots3_note": _in("text_config", _DOTS3),
    "dots3_note_text": _DOTS3,
    "dots3_note_audio_encoder": {"conv_output_size": 2048},
    "edgetam_video": {"memory_attention_rope_feat_sizes": [8, 8], "memory_attention_rope_k_sizes": [4, 4]},
    "efficientloftr": {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8},
    "emu3": {"vq_config.base_channels": 32, "vq_config.num_res_blocks": 1, "vocabulary_map": {"<image>": 200, "A": 10}},
    "esm": {"vocab_size": 256, "mask_token_id": 32, "pad_token_id": 0, "position_embedding_type": "rotary"},
    "esmfold2": {"single_inputs_size": 128 + 2 * 33 + 1},
    "eomt_dinov3": {"num_blocks": 1},
    "ernie4_5_vl_moe": {"text_config.rope_parameters.mrope_section": [6, 6, 4]},
    "ernie4_5_vl_moe_text": {"rope_parameters.mrope_section": [6, 6, 4]},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 256},
    "gemma3n_text": _GEMMA3N,
    "gemma3n": _in("text_config", _GEMMA3N),
    "glm46v": {"text_config.rope_parameters.mrope_section": [4, 6, 6]},
    "granite4_vision": {"deepstack_layer_map": [[1, 0]], "downsample_rate": "1/2", "spatial_target_layers": [1]},
    "granitemoehybrid": {
        **_MAMBA,
        "layer_types": ["linear_attention", "full_attention"],
        "position_embedding_type": "rope",
    },
    "hrm_text": {"num_hidden_layers": 24, "num_layers_per_stack": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4_vision_model": {"intermediate_size": 512},
    "mllama": {"text_config.cross_attention_layers": [1]},
    "mllama_text_model": {"cross_attention_layers": [1]},
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0]},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_spark": {"audio_config.hidden_sizes": [32, 32, 64, 128]},
    "muse_spark_audio": {"hidden_sizes": [32, 32, 64, 128]},
    "nemo_speechlm": {"text_config.layers_block_type": ["linear_attention", "moe", "full_attention"]},
    "neucodec": {"encoder_hidden_size": 8, "quantization_dim": 256},
    "phi4_multimodal_audio": {
        "nemo_conv_channels": 128,
        "ext_pw_out_channel": 128,
        "depthwise_separable_out_channel": 128,
    },
    "pe_audio": {"audio_config.dac_config.encoder_hidden_size": 8, "audio_config.dac_config.hidden_size": 128},
    "pe_audio_encoder": {"dac_config.encoder_hidden_size": 8, "dac_config.hidden_size": 128},
    "qwen2_5_omni": {"token2wav_config.bigvgan_config.upsample_initial_channel": 64},
    "qwen2_5_omni_bigvgan": {"upsample_initial_channel": 64},
    "qwen2_5_omni_token2wav": {"bigvgan_config.upsample_initial_channel": 64},
    "qwen3_omni_moe": {
        "talker_config.spatial_merge_size": 2,
        "talker_config.text_config.shared_expert_intermediate_size": 128,
    },
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 128},
    "qwen4_exp": _in("text_config", _INDEXER),
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "sam2_video": {"memory_attention_rope_feat_sizes": [8, 8]},
    "sam3_tracker_video": {"image_size": 112},
    "sapiens2": {"num_key_value_heads_per_layer": [4, 2], "num_key_value_attention_heads": 2},
    "step3p5": {"sliding_window": 8},
    "step3p7": {"text_config.sliding_window": 8},
    "t5gemma2_decoder": {"dropout_rate": 0.0},
    "t5gemma2_encoder": {"text_config.dropout_rate": 0.0},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "unlimited_ocr_vision": {"sam_config.downsample_channels": [64, 128]},
    "wav2vec2-bert": {"vocab_size": 256, "position_embeddings_type": "rotary"},
    "wav2vec2-conformer": _WAV2VEC2,
    "xcodec2": {"encoder_hidden_size": 8, "quantization_dim": 256},
    "zamba2": {
        "use_mem_rope": True,
        "attention_hidden_size": 256,
        "attention_head_dim": 64,
        "mamba_headdim": 32,
        "n_mamba_heads": 8,
    },
}
CLASSES = {  # {type: name of the class in its modeling file}; for a video model, the part that rotates
    "edgetam_video": "EdgeTamVideoMemoryAttention",
    "sam2_video": "Sam2VideoMemoryAttention",
    "sam3_tracker_video": "Sam3TrackerVideoMemoryAttention",
    "pp_doclayout_v2": "PPDocLayoutV2ForObjectDetection",
    "voxtral_realtime_text": "VoxtralRealtimeTextModel",
}
