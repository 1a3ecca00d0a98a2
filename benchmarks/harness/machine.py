"""The origin of figures: processor or GPU, versions, commit, date."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def machine(device):
    """The origin as a dict for the report. device: "cpu" or "cuda"."""
    described = _gpu() if device == "cuda" else _cpu()
    return {**described, "torch": torch.__version__, "commit": commit(), "date": datetime.date.today().isoformat()}


def commit():
    """The measured commit: from git, or in an unpacked archive from COMMIT in the environment; None if unknown."""
    git = _output("git", "--no-optional-locks", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12")
    return git or os.environ.get("COMMIT")


def _cpu():
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _gpu():
    properties = torch.cuda.get_device_properties("cuda")
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "driver": driver.splitlines()[0] if driver else "unknown",
        "cuda": torch.version.cuda,
    }


def _output(*command):
    """The output of the command; None if it fails or is not installed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None
