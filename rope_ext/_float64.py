"""Where float64 arithmetic is done: the CPU and CUDA have it, MPS has none, other devices are unknown."""

import torch


def may_lack_float64(device: torch.device) -> bool:
    """Whether what needs float64 has to be made on the CPU, and moved to this device when it is float32."""
    return device.type not in ("cpu", "cuda", "meta")


def widest(device: torch.device) -> torch.dtype:
    """The dtype of exact arithmetic on this device: on meta, which stands for any device, nothing is computed."""
    return torch.float32 if device.type == "meta" else torch.float64
