"""What a result was measured on."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch
import transformers

import vrga_ext


def machine(device: str) -> dict[str, str]:
    """Names and versions that a figure depends on; nothing that identifies the host."""
    info = vrga_ext.build_info()
    found = {
        "CPU": f"{_cpu()}, {info.threads} threads",
        "SIMD": info.simd,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "vrga_ext": info.version,
        "commit": _output_of("git", "describe", "--always", "--dirty", "--abbrev=12"),
    }
    if device == "cuda":
        query = ("--query-gpu=driver_version", "--format=csv,noheader", "-i", "0")
        found["GPU"] = torch.cuda.get_device_name(0)
        found["driver"] = _output_of("nvidia-smi", *query)
        found["CUDA of the kernels"] = info.cuda_version or f"none ({info.cuda_missing})"
    return found


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _output_of(*command: str) -> str:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
