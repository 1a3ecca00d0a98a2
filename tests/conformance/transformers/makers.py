"""Random tensors for the arguments of a forward, by the name of the argument and the configuration of the model."""

import torch

BATCH, TOKENS = 2, 12
IDS = (3, 200)  # range of token ids without a special meaning
GRID = (1, 4, 4)  # frames, rows and columns of patches of an image
PARTS = (
    "vision_config",
    "audio_config",
    "encoder_config",
    "backbone_config",
    "semantic_model_config",
    "decoder_config",
    "asr_config",
)


def field(model, *names, default=None):
    """The first of these fields in the configuration of the model, or in that of one of its parts."""
    config = model.config
    for part in (config, *(getattr(config, name, None) for name in PARTS)):
        for name in names:
            if getattr(part, name, None) is not None:
                return getattr(part, name)
    return default


def ids(model):
    return torch.randint(IDS[0], min(IDS[1], field(model, "vocab_size", default=IDS[1])), (BATCH, TOKENS))


def channels(model):
    return field(model, "num_channels", "in_channels", "in_chans", default=3)


def pixels(model):
    size = field(model, "image_size", "crop_size", default=32)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.randn(BATCH, channels(model), height, width)


def patches(model):
    """The flattened patches of two images."""
    patch = field(model, "patch_size", default=14)
    frames = field(model, "temporal_patch_size", "patch_temporal", default=1)
    rows, columns = GRID[1:]
    return torch.randn(2 * rows * columns, channels(model) * frames * patch * patch)


def square_patches(model):
    patch = field(model, "patch_size")
    return torch.randn(2 * GRID[1] * GRID[2], channels(model), patch, patch)


def embeddings(*names):
    return lambda model: torch.randn(BATCH, TOKENS, field(model, *(names or ["hidden_size"])))


def mel(model):
    return field(
        model,
        "num_mel_bins",
        "feature_projection_input_dim",
        "input_feat_size",
        "feature_size",
        "input_size",
        default=80,
    )


def mel_last(model):
    return torch.randn(BATCH, 64, mel(model))


def mel_first(model):
    return torch.randn(BATCH, mel(model), 64)


def sound(model):
    return torch.randn(BATCH, 1, 4000)


def flat_sound(model):
    return torch.randn(BATCH, 4000)


def ones(*shape):
    return lambda model: torch.ones(*shape, dtype=torch.long)


def numbers(values):
    return lambda model: torch.tensor(values)


def nothing(*names):
    return dict.fromkeys(names)


MAKERS = {
    "input_ids": ids,
    "pixel_values": pixels,
    "hidden_states": patches,
    "grid_thw": numbers([GRID, GRID]),
    "image_grid_thw": numbers([GRID, GRID]),
    "input_features": mel_last,
    "input_values": sound,
    "inputs_embeds": embeddings(),
    "noise_embeds": embeddings(),
    "attention_mask": ones(BATCH, TOKENS),
}
