"""Small models of diffusers 0.42.1 and timm 1.0.31, and their inputs.

diffusers_models.json holds the models of diffusers, in groups by the function that rotates: {class: configuration and
inputs}. "like" names another model, or a shared entry, whose fields are inherited. Inputs are described in words, see
`KINDS`. Heads are 64 wide, half the width of most published models. Fewer channels would change the arithmetic: PyTorch
has a separate code path for small numbers of complex products.
"""

import json
import pathlib

import torch

SMALL = {"depth": 2, "embed_dim": 128, "num_heads": 2}
TIMM = {  # {name: configuration}
    "eva02_tiny_patch14_224": SMALL | {"img_size": 56},
    "vit_small_patch16_rope_224": SMALL | {"img_size": 64},
    "vit_small_patch16_rope_mixed_224": SMALL | {"img_size": 64},
    "vit_medium_patch16_rope_reg1_gap_256": SMALL | {"img_size": 64},
    "vit_tiny_patch16_dinov3_qkvb": SMALL | {"img_size": 64},
    "vit_pe_core_tiny_patch16_384": SMALL | {"img_size": 64},
    "naflexvit_base_patch16_gap": SMALL | {"rope_type": "axial"},
    "qwen3_vit_88m": SMALL,
    "deepseek_vit_412m": SMALL | {"img_size": 56},
    "gemma4_vit_167m": SMALL,
}


def grid(*sizes):
    """(points, axes): the index of each grid point on each axis."""
    return torch.cartesian_prod(*map(torch.arange, sizes)).reshape(-1, len(sizes))


# {first word of an input: function of the numbers that follow}. r draws a normal tensor in the dtype of the model.
KINDS = {
    "randn": lambda r, *shape: r(*shape),
    "positive": lambda r, *shape: r(*shape).abs(),
    "table": lambda r, *shape: r(*shape).float(),
    "full": lambda r, value, *shape: torch.full(shape, float(value)),
    "true": lambda r, *shape: torch.ones(shape, dtype=torch.bool),
    "int": lambda r, *values: torch.tensor(values),
    "arange": lambda r, start, end: torch.arange(start, end),
    "grid": lambda r, *sizes: grid(*sizes).float(),
}


def made(value, r):
    """An input from its description. {"tensor": values} becomes a tensor, a list of ints a tuple; others remain."""
    if isinstance(value, dict):
        return torch.tensor(value["tensor"]) if "tensor" in value else {k: made(v, r) for k, v in value.items()}
    if isinstance(value, list):
        return tuple(value) if all(isinstance(v, int) for v in value) else [made(v, r) for v in value]
    if isinstance(value, str) and value.split()[0] in KINDS:
        kind, *numbers = value.split()
        return KINDS[kind](r, *map(int, numbers))
    return value


def omnigen():
    ids, positions = torch.arange(48).reshape(2, 24) % 10, torch.arange(41).expand(2, 41)
    return {"input_ids": ids, "input_image_sizes": {0: [[0, 16]]}, "position_ids": positions}


def wan_animate_2():
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return {"kv_cache": WanAnimate2KVCache(2)}


INPUTS = {  # {class: arguments that `KINDS` cannot describe}
    "Krea2Transformer2DModel": lambda: {"position_ids": torch.cat((torch.zeros(4, 3), grid(1, 2, 2)))},
    "OmniGenTransformer2DModel": omnigen,
    "MiniMaxH3Transformer3DModel": lambda: {"position_ids": torch.arange(18)[:, None].expand(18, 3).float()},
    "WanAnimate2Transformer3DModel": wan_animate_2,
    "Ideogram4Transformer2DModel": lambda: {"position_ids": torch.cat((grid(4).expand(4, 3), grid(1, 2, 2)))[None]},
}


def _diffusers():
    groups = json.loads(pathlib.Path(__file__).with_name("diffusers_models.json").read_text())
    written = {name: model for group in groups.values() for name, model in group.items()}

    def fields(name, part):
        found = dict(written[name][part])
        return fields(found.pop("like"), part) | found if "like" in found else found

    def inputs_of(name):
        words, more = fields(name, "inputs"), INPUTS.get(name, dict)
        return lambda r: made(words, r) | more()

    names = [name for name in written if name not in groups["shared"]]
    return {name: (fields(name, "config"), inputs_of(name)) for name in names}


DIFFUSERS = _diffusers()  # {class, optionally with a suffix after a space: (configuration, r -> arguments of forward)}
