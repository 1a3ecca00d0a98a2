"""Small configurations of the transformers of diffusers 0.42.1, and inputs: class -> (configuration, inputs).

inputs(r) -> arguments of forward; r(*shape) draws a tensor of the dtype of the model. Heads are 64 wide, half of what
most published models have: PyTorch multiplies few complex numbers by other code than many.
"""

import torch


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def steps(*values):
    return torch.tensor(values or (44,))


def grid(*sizes):
    """(tokens, axes): the index of each token of a grid on each axis."""
    return torch.cartesian_prod(*map(torch.arange, sizes)).reshape(-1, len(sizes))


def packed(r, channels=16, text=32, ids=3):
    """Image tokens of a 4 x 4 grid and 12 text tokens, as models after Flux take them."""
    image = torch.cat((torch.zeros(16, ids - 2), grid(4, 4)), dim=1)
    return {
        "hidden_states": r(1, 16, channels),
        "encoder_hidden_states": r(1, 12, text),
        "img_ids": image,
        "txt_ids": torch.zeros(12, ids),
        "timestep": r(1).abs(),
    }


def video(r, channels=4, frames=2, size=8, text=(12, 16)):
    return {
        "hidden_states": r(1, channels, frames, size, size),
        "encoder_hidden_states": r(1, *text),
        "timestep": steps(),
    }


FLUX = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (8, 28, 28),
}
POOLED = {"pooled_projection_dim": 32}
WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "rope_max_seq_len": 32,
}
WAN_NORM = WAN | {"qk_norm": "rms_norm_across_heads"}
COGVIDEOX = {
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 8,
    "num_layers": 2,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 8,
    "patch_size": 2,
    "max_text_seq_length": 8,
    "use_rotary_positional_embeddings": True,
}
HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "patch_size_t": 1,
    "text_embed_dim": 16,
    "rope_axes_dim": (16, 24, 24),
}
HUNYUAN_VIDEO = HUNYUAN | {"num_single_layers": 1, "guidance_embeds": True, "pooled_projection_dim": 8}
ANYFLOW = WAN | {"gate_value": 0.25, "deltatime_type": "r"}
QWEN = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (8, 28, 28),
}
SIZES = {"original_size": ones(1, 2) * 64, "target_size": ones(1, 2) * 64, "crop_coords": ones(1, 2) * 0}


def cogvideox(r, tokens=2 * 4 * 4):
    return {
        "hidden_states": r(2, 2, 4, 8, 8),
        "encoder_hidden_states": r(2, 8, 8),
        "timestep": steps(44, 239),
        "image_rotary_emb": (r(tokens, 64).float(), r(tokens, 64).float()),
    }


def qwen(r):
    return {
        "hidden_states": r(1, 16, 16),
        "encoder_hidden_states": r(1, 8, 16),
        "encoder_hidden_states_mask": ones(1, 8, dtype=torch.int64),
        "timestep": r(1).abs(),
        "img_shapes": [(1, 4, 4)],
    }


def hunyuan_video(r, **more):
    return {
        "hidden_states": r(1, 4, 2, 8, 8),
        "timestep": steps(),
        "encoder_hidden_states": r(1, 12, 16),
        "pooled_projections": r(1, 8),
        "encoder_attention_mask": ones(1, 12),
        "guidance": r(1).abs(),
        **more,
    }


def minimax_h3(r):
    """4 text, 6 audio and 8 video tokens in one sequence."""
    tags = torch.tensor([0] * 4 + [1] * 6 + [2] * 8)
    return {
        "hidden_states": r(1, 8, 16),
        "audio_hidden_states": r(1, 6, 6),
        "encoder_hidden_states": r(1, 4, 8),
        "timestep": r(2).abs(),
        "timestep_indices": (tags > 0).long(),
        "token_tags": tags,
        "position_ids": grid(18).expand(18, 3).float(),
        "video_indices": torch.arange(10, 18),
        "audio_indices": torch.arange(4, 10),
        "text_indices": torch.arange(4),
    }


def wan_animate_2(r):
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return {
        "hidden_states": [r(16, 2, 4, 4)],
        "timestep": ones(1),
        "encoder_hidden_states": [r(8, 32)],
        "condition_latents": [r(20, 2, 4, 4)],
        "encoder_hidden_states_image": r(1, 4, 1280),
        "kv_cache": WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    }


CASES = {
    # ---- embeddings.apply_rotary_emb, bound at import ----
    "FluxTransformer2DModel": (FLUX | POOLED, lambda r: packed(r) | {"pooled_projections": r(1, 32)}),
    "Flux2Transformer2DModel": (
        FLUX | {"axes_dims_rope": (16, 16, 16, 16), "timestep_guidance_channels": 32},
        lambda r: packed(r, ids=4) | {"guidance": r(1).abs()},
    ),
    "BriaTransformer2DModel": (FLUX | {"pooled_projection_dim": None}, packed),
    "BriaFiboTransformer2DModel": (
        FLUX | {"pooled_projection_dim": None, "text_encoder_dim": 16},
        lambda r: packed(r) | {"text_encoder_layers": [r(1, 12, 16), r(1, 12, 16)]},
    ),
    "ChromaTransformer2DModel": (
        FLUX | {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
        packed,
    ),
    "LongCatImageTransformer2DModel": (FLUX | POOLED, lambda r: packed(r) | {"guidance": r(1).abs()}),
    "OvisImageTransformer2DModel": (FLUX | {"out_channels": 16}, packed),
    "Krea2Transformer2DModel": (
        {
            "in_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "timestep_embed_dim": 8,
            "text_hidden_dim": 16,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 1,
            "text_intermediate_size": 16,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (16, 24, 24),
        },
        lambda r: {
            "hidden_states": r(1, 4, 16),
            "encoder_hidden_states": r(1, 4, 3, 16),
            "timestep": r(1).abs(),
            "position_ids": torch.cat((torch.zeros(4, 3), grid(1, 2, 2))),
            "encoder_attention_mask": torch.tensor([[True, True, True, False]]),
        },
    ),
    "Flux3Transformer2DModel": (
        {
            "in_channels": 16,
            "cond_in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "timestep_channels": 32,
            "axes_dims_rope": (16, 16, 16, 16),
        },
        lambda r: packed(r, ids=4),
    ),
    "MotifVideoTransformer3DModel": (
        {k: v for k, v in HUNYUAN.items() if k != "num_refiner_layers"}
        | {"in_channels": 9, "num_single_layers": 1, "num_decoder_layers": 0, "patch_size": 1},
        lambda r: video(r, channels=9),
    ),
    "AceStepTransformer1DModel": (
        {
            "hidden_size": 128,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "in_channels": 24,
            "audio_acoustic_hidden_dim": 8,
            "patch_size": 2,
            "sliding_window": 16,
        },
        lambda r: {
            "hidden_states": r(2, 8, 8),
            "timestep": r(2).abs(),
            "timestep_r": r(2).abs(),
            "encoder_hidden_states": r(2, 10, 128),
            "context_latents": r(2, 8, 16),
        },
    ),
    "Lumina2Transformer2DModel": (
        {
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 128,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": (32, 16, 16),
            "axes_lens": (64, 64, 64),
            "cap_feat_dim": 32,
        },
        lambda r: {
            "hidden_states": r(2, 4, 16, 16),
            "encoder_hidden_states": r(2, 16, 32),
            "timestep": r(2).abs(),
            "encoder_attention_mask": ones(2, 16, dtype=torch.bool),
        },
    ),
    # ---- embeddings.apply_rotary_emb, imported when it is called ----
    "CogVideoXTransformer3DModel": (COGVIDEOX, cogvideox),
    "ConsisIDTransformer3DModel": (COGVIDEOX | {"is_train_face": False}, cogvideox),
    "CogView4Transformer2DModel": (
        {
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "out_channels": 4,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
            "condition_dim": 4,
        },
        lambda r: {"hidden_states": r(1, 4, 8, 8), "encoder_hidden_states": r(1, 8, 8), "timestep": steps()} | SIZES,
    ),
    "GlmImageTransformer2DModel": (
        {
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "text_embed_dim": 32,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "prior_vq_quantizer_codebook_size": 64,
        },
        lambda r: {
            "hidden_states": r(1, 4, 8, 8),
            "encoder_hidden_states": r(1, 12, 32),
            "prior_token_id": steps(),
            "prior_token_drop": torch.tensor([False]),
            "timestep": steps(),
            "target_size": ones(1, 2) * 64,
            "crop_coords": ones(1, 2) * 0,
        },
    ),
    "CosmosTransformer3DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "num_layers": 2,
            "mlp_ratio": 2,
            "text_embed_dim": 16,
            "adaln_lora_dim": 4,
            "max_size": (4, 32, 32),
            "patch_size": (1, 2, 2),
            "rope_scale": (2.0, 1.0, 1.0),
            "concat_padding_mask": False,
        },
        lambda r: video(r) | {"fps": 30},
    ),
    "EasyAnimateTransformer3DModel": (
        {
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "in_channels": 4,
            "out_channels": 4,
            "mmdit_layers": 2,
            "num_layers": 2,
            "patch_size": 2,
            "sample_height": 60,
            "sample_width": 90,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "time_position_encoding_type": "3d_rope",
        },
        lambda r: video(r, size=16),
    ),
    "HunyuanDiT2DModel": (
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "cross_attention_dim": 8,
            "cross_attention_dim_t5": 8,
            "pooled_projection_dim": 4,
            "hidden_size": 128,
            "text_len": 4,
            "text_len_t5": 4,
        },
        lambda r: {
            "hidden_states": r(2, 4, 8, 8),
            "encoder_hidden_states": r(2, 4, 8),
            "text_embedding_mask": ones(2, 4),
            "encoder_hidden_states_t5": r(2, 4, 8),
            "text_embedding_mask_t5": ones(2, 4),
            "timestep": r(2).abs(),
            "image_meta_size": r(2, 6),
            "style": steps(0, 0),
            "image_rotary_emb": [r(16, 64).float(), r(16, 64).float()],
        },
    ),
    "HunyuanVideoTransformer3DModel": (HUNYUAN_VIDEO | {"patch_size": 1}, hunyuan_video),
    "HunyuanVideoFramepackTransformer3DModel": (
        HUNYUAN_VIDEO | {"patch_size": 2, "has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
        lambda r: hunyuan_video(
            r,
            hidden_states=r(1, 4, 3, 8, 8),
            image_embeds=r(1, 12, 16),
            indices_latents=torch.arange(12, 15),
            latents_clean=r(1, 4, 2, 8, 8),
            indices_latents_clean=torch.tensor([0, 11]),
            latents_history_2x=r(1, 4, 2, 8, 8),
            indices_latents_history_2x=torch.tensor([9, 10]),
            latents_history_4x=r(1, 4, 8, 8, 8),
            indices_latents_history_4x=torch.arange(1, 9),
        ),
    ),
    "HunyuanVideo15Transformer3DModel": (
        HUNYUAN | {"patch_size": 1, "text_embed_2_dim": 8, "image_embed_dim": 12, "target_size": 16},
        lambda r: {
            "hidden_states": r(1, 4, 1, 8, 8),
            "timestep": r(1).abs(),
            "encoder_hidden_states": r(1, 6, 16),
            "encoder_hidden_states_2": r(1, 4, 8),
            "encoder_attention_mask": ones(1, 6),
            "encoder_attention_mask_2": ones(1, 4),
            "image_embeds": r(1, 3, 12),
        },
    ),
    "OmniGenTransformer2DModel": (
        {
            "hidden_size": 128,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "num_layers": 2,
            "pad_token_id": 0,
            "vocab_size": 100,
            "in_channels": 4,
            "time_step_dim": 4,
            "rope_scaling": {"long_factor": [1.0] * 32, "short_factor": [1.0] * 32},
        },
        lambda r: {
            "hidden_states": r(2, 4, 8, 8),
            "timestep": r(2).abs(),
            "input_ids": torch.arange(48).reshape(2, 24) % 10,
            "input_img_latents": [r(1, 4, 8, 8)],
            "input_image_sizes": {0: [[0, 16]]},
            "attention_mask": ones(2, 41, 41),
            "position_ids": torch.arange(41).expand(2, 41),
        },
    ),
    "StableAudioDiTModel": (
        {
            "sample_size": 8,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "num_key_value_attention_heads": 1,
            "out_channels": 4,
            "cross_attention_dim": 16,
            "time_proj_dim": 8,
            "global_states_input_dim": 8,
            "cross_attention_input_dim": 16,
        },
        lambda r: {
            "hidden_states": r(1, 4, 8),
            "timestep": steps(),
            "encoder_hidden_states": r(1, 6, 16),
            "global_hidden_states": r(1, 1, 8),
            "rotary_embedding": (r(9, 32).float(), r(9, 32).float()),
        },
    ),
    # ---- other functions of modules ----
    "AllegroTransformer3DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 48,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "cross_attention_dim": 96,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 8,
            "caption_channels": 8,
        },
        lambda r: (
            video(r, text=(16, 8))
            | {
                "image_rotary_emb": (
                    [(r(4, 16).float(), r(4, 16).float()) for _ in range(3)],
                    [index[None] for index in grid(2, 4, 4).T],
                )
            }
        ),
    ),
    "AnyFlowTransformer3DModel": (
        ANYFLOW,
        lambda r: {
            "hidden_states": r(1, 2, 4, 8, 8),
            "timestep": r(1, 2).abs(),
            "r_timestep": r(1, 2).abs(),
            "encoder_hidden_states": r(1, 12, 16),
        },
    ),
    "AnyFlowFARTransformer3DModel": (
        ANYFLOW | {"compressed_patch_size": (1, 4, 4), "full_chunk_limit": 3},
        lambda r: {
            "hidden_states": r(1, 4, 4, 8, 8),
            "timestep": r(1, 4).abs(),
            "r_timestep": r(1, 4).abs(),
            "encoder_hidden_states": r(1, 12, 16),
            "chunk_partition": [2, 2],
        },
    ),
    "HeliosTransformer3DModel": (
        {k: v for k, v in WAN_NORM.items() if k != "rope_max_seq_len"}
        | {
            "rope_dim": (16, 24, 24),
            "has_multi_term_memory_patch": True,
            "guidance_cross_attn": True,
            "zero_history_timestep": True,
            "is_amplify_history": False,
        },
        lambda r: (
            video(r, size=16)
            | {
                "indices_hidden_states": torch.arange(6, 8)[None].float(),
                "indices_latents_history_short": ones(1, 1) * 5,
                "indices_latents_history_mid": ones(1, 1) * 4,
                "indices_latents_history_long": torch.arange(4)[None].float(),
                "latents_history_short": r(1, 4, 1, 16, 16),
                "latents_history_mid": r(1, 4, 1, 16, 16),
                "latents_history_long": r(1, 4, 4, 16, 16),
            }
        ),
    ),
    "HiDreamImageTransformer2DModel": (
        {
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "caption_channels": [8, 4],
            "text_emb_dim": 8,
            "num_routed_experts": 2,
            "num_activated_experts": 2,
            "axes_dims_rope": (32, 16, 16),
            "max_resolution": (32, 32),
            "llama_layers": (0, 1),
            "force_inference_output": True,
        },
        lambda r: {
            "hidden_states": r(1, 4, 16, 16),
            "encoder_hidden_states_t5": r(1, 8, 8),
            "encoder_hidden_states_llama3": r(2, 1, 8, 4),
            "pooled_embeds": r(1, 8),
            "timesteps": steps(),
        },
    ),
    "JoyImageEditTransformer3DModel": (
        {
            "patch_size": [1, 2, 2],
            "in_channels": 16,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "text_dim": 16,
            "num_layers": 2,
            "rope_dim_list": [16, 24, 24],
            "theta": 256,
        },
        lambda r: video(r, channels=16, frames=1) | {"timestep": r(1).abs()},
    ),
    "JoyImageEditPlusTransformer3DModel": (
        {
            "patch_size": [1, 2, 2],
            "in_channels": 16,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "text_dim": 16,
            "num_layers": 2,
            "rope_dim_list": [16, 24, 24],
            "theta": 256,
        },
        lambda r: {
            "hidden_states": r(1, 8, 16, 1, 2, 2),
            "encoder_hidden_states": r(1, 12, 16),
            "timestep": r(1).abs(),
            "shape_list": [[(1, 2, 2), (1, 2, 2)]],
        },
    ),
    "LongCatAudioDiTTransformer": (
        {"dit_dim": 128, "dit_depth": 2, "dit_heads": 2, "dit_text_dim": 32, "latent_dim": 8, "text_conv": False},
        lambda r: {
            "hidden_states": r(1, 16, 8),
            "encoder_hidden_states": r(1, 10, 32),
            "encoder_attention_mask": ones(1, 10, dtype=torch.bool),
            "attention_mask": ones(1, 16, dtype=torch.bool),
            "timestep": r(1).abs(),
        },
    ),
    "LTXVideoTransformer3DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "cross_attention_dim": 128,
            "num_layers": 2,
            "caption_channels": 16,
        },
        lambda r: {
            "hidden_states": r(2, 32, 4),
            "encoder_hidden_states": r(2, 16, 16),
            "timestep": steps(44, 239),
            "encoder_attention_mask": ones(2, 16, dtype=torch.bool),
            "num_frames": 2,
            "height": 4,
            "width": 4,
        },
    ),
    **{
        name: (
            {
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 64,
                "cross_attention_dim": 128,
                "audio_in_channels": 4,
                "audio_out_channels": 4,
                "audio_num_attention_heads": 2,
                "audio_attention_head_dim": 32,
                "audio_cross_attention_dim": 64,
                "num_layers": 2,
                "caption_channels": 16,
                "rope_double_precision": False,
                "rope_type": rope_type,
            },
            lambda r: {
                "hidden_states": r(2, 32, 4),
                "audio_hidden_states": r(2, 9, 4),
                "encoder_hidden_states": r(2, 16, 16),
                "audio_encoder_hidden_states": r(2, 16, 16),
                "timestep": r(2).abs(),
                "encoder_attention_mask": ones(2, 16, dtype=torch.bool),
                "num_frames": 2,
                "height": 4,
                "width": 4,
                "audio_num_frames": 9,
                "fps": 25.0,
            },
        )
        for name, rope_type in (
            ("LTX2VideoTransformer3DModel", "interleaved"),
            ("LTX2VideoTransformer3DModel split", "split"),
        )
    },
    "MiniMaxH3Transformer3DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 2,
            "ffn_dim": 32,
            "in_channels": 4,
            "audio_in_channels": 6,
            "patch_size": (1, 2, 2),
            "text_dim": 8,
            "freq_dim": 8,
            "time_embed_hidden_dim": 24,
            "time_embed_dim": 16,
            "rope_freq_dim": 8,
        },
        minimax_h3,
    ),
    "MiniMaxMusic3Transformer1DModel": (
        {
            "in_channels": 8,
            "condition_dim": 16,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "ff_inner_dim": 32,
            "rotary_dim": 32,
            "fourier_embedding_dim": 8,
        },
        lambda r: {"hidden_states": r(1, 8, 24), "encoder_hidden_states": r(1, 24, 16), "timestep": r(1).abs()},
    ),
    "NucleusMoEImageTransformer2DModel": (QWEN | {"moe_enabled": False, "capacity_factors": [8.0, 8.0]}, qwen),
    "QwenImageTransformer2DModel": (QWEN, qwen),
    "QwenImage21Transformer2DModel": (
        {
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "context_in_dim": 16,
            "axes_dims_rope": (8, 28, 28),
        },
        lambda r: {
            "hidden_states": r(1, 16, 16),
            "encoder_hidden_states": r(1, 8, 16),
            "timestep": r(1).abs(),
            "img_shapes": [[(1, 4, 4)]],
            "img_mask": torch.arange(12)[None] >= 8,
        },
    ),
    "Kandinsky6Transformer3DModel": (
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 16,
            "model_dim": 128,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (16, 24, 24),
            "visual_cond": False,
        },
        lambda r: {
            "hidden_states": r(1, 2, 8, 8, 4),
            "encoder_hidden_states": r(1, 12, 16),
            "pooled_projections": r(1, 8),
            "timestep": r(1).abs(),
        },
    ),
    "Kandinsky6SRTransformer3DModel": (
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "time_dim": 16,
            "model_dim": 128,
            "ff_dim": 32,
            "num_visual_blocks": 2,
            "axes_dims": (16, 24, 24),
        },
        lambda r: {"hidden_states": r(1, 2, 8, 8, 9), "timestep": r(1).abs()},
    ),
    "SanaWMLTX2RefinerTransformer3DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "cross_attention_dim": 128,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 32,
            "audio_cross_attention_dim": 64,
            "num_layers": 2,
            "caption_channels": 16,
        },
        lambda r: {
            "hidden_states": r(1, 32, 4),
            "encoder_hidden_states": r(1, 16, 16),
            "timestep": r(1, 32).abs(),
            "video_rotary_emb": (r(1, 32, 128).float(), r(1, 32, 128).float()),
        },
    ),
    "SanaWMTransformer3DModel": (
        {
            "in_channels": 4,
            "num_layers": 2,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "softmax_every_n": 2,
            "linear_head_dim": 64,
            "caption_channels": 16,
            "chunk_plucker_post_attn_blocks": 2,
            "image_size": 64,
        },
        lambda r: {
            "hidden_states": r(1, 4, 2, 4, 4),
            "timestep": ones(1, 1, 2) * 44,
            "encoder_hidden_states": r(1, 1, 12, 16),
            "mask": ones(1, 12),
        },
    ),
    "WanAnimate2Transformer3DModel": (
        {
            "text_len": 16,
            "in_dim": 36,
            "dim": 256,
            "ffn_dim": 32,
            "freq_dim": 64,
            "text_dim": 32,
            "num_heads": 2,
            "num_layers": 2,
        },
        wan_animate_2,
    ),
    "AnimaTextConditioner": (
        {
            "source_dim": 16,
            "target_dim": 128,
            "model_dim": 128,
            "num_layers": 2,
            "num_attention_heads": 2,
            "target_vocab_size": 50,
        },
        lambda r: {"source_hidden_states": r(1, 10, 16), "target_input_ids": torch.arange(12)[None]},
    ),
    "PRXTransformer2DModel": (
        {"in_channels": 4, "context_in_dim": 32, "hidden_size": 128, "num_heads": 2, "depth": 2, "axes_dim": [32, 32]},
        lambda r: {"hidden_states": r(1, 4, 16, 16), "encoder_hidden_states": r(1, 16, 32), "timestep": r(1).abs()},
    ),
    "StableAudio3DiTModel": (
        {
            "io_channels": 8,
            "embed_dim": 128,
            "depth": 2,
            "num_heads": 2,
            "cond_token_dim": 16,
            "global_cond_dim": 12,
            "local_add_cond_dim": 5,
            "timestep_features_dim": 16,
            "ff_mult": 2,
            "num_memory_tokens": 3,
        },
        lambda r: {
            "hidden_states": r(2, 8, 16),
            "timestep": r(2).abs(),
            "encoder_hidden_states": r(2, 4, 16),
            "global_hidden_states": r(2, 12),
        },
    ),
    # ---- functions nested in a processor ----
    "WanTransformer3DModel": (WAN_NORM, video),
    "WanVACETransformer3DModel": (
        WAN_NORM | {"vace_layers": [0, 1], "vace_in_channels": 8},
        lambda r: video(r) | {"control_hidden_states": r(1, 8, 2, 8, 8)},
    ),
    "SkyReelsV2Transformer3DModel": (WAN_NORM, video),
    "ChronoEditTransformer3DModel": (WAN_NORM | {"rope_temporal_skip_len": 8}, video),
    "SanaVideoTransformer3DModel": (
        {
            "in_channels": 16,
            "out_channels": 16,
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 64,
            "cross_attention_dim": 128,
            "caption_channels": 16,
            "sample_size": 8,
            "patch_size": (1, 2, 2),
            "qk_norm": "rms_norm_across_heads",
            "rope_max_seq_len": 32,
        },
        lambda r: video(r, channels=16),
    ),
    "WanAnimateTransformer3DModel": (
        WAN_NORM
        | {
            "in_channels": 12,
            "latent_channels": 4,
            "image_dim": 16,
            "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 16,
            "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        lambda r: (
            video(r, channels=12, frames=21)
            | {
                "encoder_hidden_states_image": r(1, 12, 16),
                "pose_hidden_states": r(1, 4, 20, 8, 8),
                "face_pixel_values": r(1, 3, 77, 16, 16),
            }
        ),
    ),
    "MochiTransformer3DModel": (
        {
            "patch_size": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "max_sequence_length": 12,
        },
        lambda r: video(r) | {"encoder_attention_mask": ones(1, 12, dtype=torch.bool)},
    ),
    "ErnieImageTransformer2DModel": (
        {
            "hidden_size": 128,
            "num_attention_heads": 2,
            "num_layers": 1,
            "ffn_hidden_size": 16,
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 1,
            "text_in_dim": 16,
            "rope_axes_dim": (16, 24, 24),
        },
        lambda r: {
            "hidden_states": r(1, 16, 4, 4),
            "timestep": r(1).abs(),
            "text_bth": r(1, 16, 16),
            "text_lens": steps(16),
        },
    ),
    "ZImageTransformer2DModel": (
        {
            "all_patch_size": (2,),
            "all_f_patch_size": (1,),
            "in_channels": 16,
            "dim": 128,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [32, 16, 16],
            "axes_lens": [64, 32, 32],
        },
        lambda r: {"x": [r(16, 1, 8, 8)], "cap_feats": [r(16, 16)], "t": r(1).abs()},
    ),
    "BriaFibo2Transformer2DModel": (
        {
            "in_channels": 4,
            "dim": 128,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "cap_feat_dim": 16,
            "injection_layer_ids": (1,),
            "perceiver_num_layers": 1,
            "min_num_gist_tokens": 4,
            "max_num_gist_tokens": 8,
            "gist_step": 2,
            "gist_min_text_len": 4,
            "gist_max_text_len": 16,
            "axes_dims": (16, 24, 24),
            "axes_lens": (64, 32, 32),
        },
        lambda r: {"hidden_states": r(1, 4, 8, 8), "timestep": r(1).abs(), "encoder_hidden_states": r(1, 2, 12, 16)},
    ),
    "Kandinsky5Transformer3DModel": (
        {
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 16,
            "model_dim": 128,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (16, 24, 24),
        },
        lambda r: {
            "hidden_states": r(1, 2, 8, 8, 4),
            "encoder_hidden_states": r(1, 12, 16),
            "timestep": r(1).abs(),
            "pooled_projections": r(1, 8),
            "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
            "text_rope_pos": torch.arange(12),
        },
    ),
    # ---- the rotation is written out, there is no function to replace ----
    "Ideogram4Transformer2DModel": (
        {
            "in_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "adaln_dim": 16,
            "llm_features_dim": 24,
            "mrope_section": (16, 8, 8),
        },
        lambda r: {
            "hidden_states": r(1, 8, 16),
            "encoder_hidden_states": r(1, 8, 24),
            "timestep": r(1).abs(),
            "position_ids": torch.cat((grid(4).expand(4, 3), grid(1, 2, 2)))[None],
            "segment_ids": ones(1, 8, dtype=torch.int64),
            "indicator": torch.tensor([[3, 3, 3, 3, 2, 2, 2, 2]]),
        },
    ),
}
