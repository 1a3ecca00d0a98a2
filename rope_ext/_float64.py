"""Where float64 arithmetic is done: the CPU and CUDA have it, MPS has none, other devices are unknown."""

import torch


def may_lack_float64(device: torch.device) -> bool:
    """Whether float64 arithmetic for this device must run on the CPU, before the float32 result moves there."""
    return device.type not in ("cpu", "cuda", "meta")


def widest(device: torch.device) -> torch.dtype:
    """The dtype of exact arithmetic on this device; float32 on meta, which computes nothing."""
    return torch.float32 if device.type == "meta" else torch.float64
