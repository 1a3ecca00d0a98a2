"""Which devices support float64 arithmetic: CPU and CUDA do, MPS does not, others are unknown."""

import torch


def may_lack_float64(device: torch.device) -> bool:
    """Whether float64 arithmetic for this device must run on the CPU, and the float32 result be moved to the device."""
    return device.type not in ("cpu", "cuda", "meta")


def widest(device: torch.device) -> torch.dtype:
    """The dtype of exact arithmetic on this device; float32 on meta, which computes nothing."""
    return torch.float32 if device.type == "meta" else torch.float64
