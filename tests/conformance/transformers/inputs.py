"""Random arguments for the forward of a small model of `small_models.py`, chosen by the names in its signature."""

import inspect

import torch

from tests.conformance.transformers.makers import (
    BATCH,
    GRID,
    IDS,
    MAKERS,
    TOKENS,
    embeddings,
    flat_sound,
    ids,
    mel_first,
    mel_last,
    nothing,
    numbers,
    ones,
    patches,
    square_patches,
)
from tests.conformance.transformers.small_models import NoModel


def inputs(model_type, model, dtype):
    """{name: value} of the arguments of the forward, equal at each call."""
    torch.manual_seed(1)
    signature = inspect.signature(model.forward).parameters
    if "input" in signature:
        raise NoModel("no forward of its own")
    needed = [n for n, p in signature.items() if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    expected = dict.fromkeys([*needed, getattr(model, "main_input_name", "input_ids"), "input_ids"])
    special = INPUTS.get(model_type, {})
    makers = {**MAKERS, **special}
    if any("grid" in name for name in needed):
        makers["pixel_values"] = special.get("pixel_values", patches)
    found = {
        name: makers[name](model)
        for name in (*expected, *special)
        if makers.get(name) and (name in signature or name in special)
    }
    if missing := [name for name in needed if name not in found]:
        raise LookupError(f"nothing makes {', '.join(missing)}")
    if "decoder_input_ids" in signature and "decoder_input_ids" not in found and model.config.is_encoder_decoder:
        found["decoder_input_ids"] = ids(model)
    return {name: t.to(dtype) if torch.is_tensor(t) and t.is_floating_point() else t for name, t in found.items()}


def _memory(frames, tokens=None):
    """Arguments of a video model's attention to memories: frames of `tokens` tokens each, and 4 object pointers."""

    def memory(model):
        return torch.randn(frames * (tokens or model.position_ids.shape[0]) + 4, BATCH, 64)

    return {
        "current_vision_features": lambda m: torch.randn(
            m.position_ids.shape[0], BATCH, m.config.memory_attention_hidden_size
        ),
        "memory": memory,
        "memory_posision_embeddings": memory,
        "num_object_pointer_tokens": lambda m: 4,
    }


ENCODED = {"encoder_hidden_states": embeddings()}
INPUTS = {  # {type: {argument: function of the model that creates it, or None to omit the argument}}
    "blt_local_decoder": {
        "patch_embeds": embeddings("hidden_size_global"),
        "inputs_embeds": embeddings(),
        **nothing("input_ids"),
    },
    "blt_local_encoder": {
        "num_patches": lambda m: 4,
        "patch_ids": lambda m: torch.arange(TOKENS).expand(BATCH, -1) // 3,
    },
    "deepseek_ocr2_encoder": {"num_patches": lambda m: TOKENS},
    "dia": {"decoder_input_ids": lambda m: torch.randint(*IDS, (BATCH, TOKENS, 9))},
    "dia_decoder": {
        "input_ids": lambda m: torch.randint(*IDS, (BATCH, TOKENS, 9)),
        "encoder_hidden_states": embeddings("cross_hidden_size"),
    },
    "gemma3n_audio": {"audio_mel": mel_last, "audio_mel_mask": lambda m: torch.zeros(BATCH, 64, dtype=torch.bool)},
    "gemma4_audio": {"input_features": lambda m: torch.randn(BATCH, 64, 128)},
    "gemma4_vision": {
        "pixel_values": lambda m: torch.randn(BATCH, 36, 3 * m.config.patch_size**2),
        "pixel_position_ids": lambda m: torch.cartesian_prod(torch.arange(6), torch.arange(6)).expand(BATCH, -1, -1),
    },
    "glmasr_encoder": {"input_features": mel_first},
    "idefics": {
        "pixel_values": lambda m: torch.randn(BATCH, 1, 3, 224, 224),
        "image_attention_mask": ones(BATCH, TOKENS, 1),
    },
    "kimi_k25_vision": {"pixel_values": square_patches},
    "lightglue": {"pixel_values": lambda m: torch.rand(BATCH, 2, 3, 96, 96)},
    "mllama_vision_model": {
        "pixel_values": lambda m: torch.randn(BATCH, 1, 4, 3, m.config.image_size, m.config.image_size),
        "aspect_ratio_ids": ones(BATCH, 1),
        "aspect_ratio_mask": ones(BATCH, 1, 4),
    },
    "minicpmv4_7_vision": {
        "target_sizes": numbers([GRID[1:], GRID[1:]]),
        "pixel_values": lambda m: torch.randn(1, 3, 16, 16 * 32),
    },
    "molmo2_vision": {"pixel_values": lambda m: torch.randn(BATCH, 729, 3 * m.config.patch_size**2)},
    "moonshine": {"input_values": flat_sound},
    "muse_glimmer_assistant": {
        "context_hidden_states": lambda m: torch.randn(
            BATCH, TOKENS, m.config.hidden_size * len(m.config.target_layer_ids)
        )
    },
    "neucodec": {"input_features": lambda m: torch.randn(BATCH, 12, 160)},
    "paddleocr_vl_vision": {"pixel_values": lambda m: square_patches(m)[None], "grid_thw": numbers([GRID, GRID])},
    "phi4_multimodal_audio": {"hidden_states": mel_last, "mask": lambda m: None},
    "qwen2_5_omni_dit": {
        "hidden_states": lambda m: torch.randn(1, 48, m.config.mel_dim),
        "condition_vector": lambda m: torch.randn(1, 48, m.config.mel_dim),
        "speaker_embedding": lambda m: torch.randn(1, 48, m.config.enc_emb_dim),
        "quantized_code": lambda m: torch.randint(*IDS, (1, 24)),
        "time_step": lambda m: torch.tensor(0.5),
    },
    "qwen2_5_omni_talker": {"inputs_embeds": embeddings("embedding_size"), **nothing("input_ids")},
    "qwen3_omni_moe_talker_code_predictor": {"inputs_embeds": embeddings(), **nothing("input_ids")},
    "t5gemma2_decoder": ENCODED,
    "timesfm2_5": {"past_values": lambda m: torch.randn(BATCH, 128)},
    "unlimited_ocr_vision_encoder": {"patch_embeds": lambda m: torch.randn(BATCH, m.config.hidden_size, 16, 16)},
    "video_llama_3_vision": {"merge_sizes": numbers([2, 2])},
    "vjepa2": {"pixel_values_videos": lambda m: torch.randn(1, 4, 3, 64, 64)},
    "voxtral_realtime": {"input_features": lambda m: torch.randn(BATCH, 128, 96)},
    "voxtral_realtime_encoder": {"input_features": mel_first},
    "wav2vec2-conformer": {"input_values": flat_sound},
    "blt": {"use_cache": lambda m: False},
    "clvp": {"input_features": mel_first},
    "efficientloftr": {"pixel_values": lambda m: torch.rand(BATCH, 2, 3, 64, 64)},
    "kyutai_speech_to_text": {
        "input_ids": lambda m: torch.randint(*IDS, (BATCH, TOKENS, m.config.num_codebooks + 1)),
        **nothing("input_values"),
    },
    "moshi_depth": {
        "input_ids": lambda m: torch.randint(*IDS, (BATCH, 8)),
        "last_hidden_state": lambda m: torch.randn(BATCH, 8, m.config.input_size),
    },
    "muse_spark_audio": {"input_values": lambda m: torch.randn(BATCH, 3840)},
    "xcodec2": {"input_features": lambda m: torch.randn(BATCH, 12, 160)},
    "qwen2_5_omni_audio_encoder": {
        "input_features": lambda m: torch.randn(128, 64),
        "feature_lens": numbers([64]),
        "aftercnn_lens": numbers([32]),
    },
    "qwen3_omni_moe_audio_encoder": {
        "input_features": lambda m: torch.randn(128, 64),
        "feature_lens": numbers([64]),
        "aftercnn_lens": numbers([32]),
    },
    "qwen3_omni_moe_talker_text": {"inputs_embeds": embeddings(), **nothing("input_ids")},
    "dots3_note_audio_encoder": {"input_features": mel_first, "chunk_sample_lengths": numbers([10240, 10240])},
    "mimi_decoder": {"latents": lambda m: torch.randn(BATCH, m.config.hidden_size, TOKENS)},
    "pocket_tts_audio_tokenizer_decoder": {"latents": lambda m: torch.randn(BATCH, m.config.hidden_size, TOKENS)},
    "inkling2_vision": {
        "image_grid_thw": numbers([(1, 2, 2), (1, 2, 2)]),
        "pixel_values": lambda m: torch.randn(8, 40, 40, 3),
    },
    "sam2_video": _memory(2),
    "sam3_tracker_video": _memory(2),
    "edgetam_video": {**_memory(2, 16 + 4), "num_spatial_memory_tokens": lambda m: 2},
    "pp_doclayout_v2": {"pixel_values": lambda m: torch.randn(1, 3, 64, 64)},
    "voxtral_realtime_text": {"t_cond": embeddings()},
}
