"""Peak memory of one prefill in this process: ``python -m bench.memory REQUEST`` prints JSON.

On a CPU that is the resident set's high-water mark, on a GPU what torch's allocator held at most.
A process of its own, so that nothing from before is in it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench import models
from bench.generation import enabled_model
from bench.timing import synchronize


def peak_of_prefill(name: str, case: models.ModelCase, device: str) -> dict[str, Any]:
    """``peak_bytes``, ``growth_bytes`` over what was there before, ``seconds``."""
    model, _handle = enabled_model(name, case, device)
    inputs = models.make_prompt(case, device)
    _reset_peak(device)
    before = _peak(device)
    start = time.perf_counter()
    model(**inputs, use_cache=True, logits_to_keep=1)
    synchronize(device)
    seconds = time.perf_counter() - start
    peak = _peak(device)
    return {"peak_bytes": peak, "growth_bytes": peak - before, "seconds": seconds}


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status: wanted a line VmHWM, got none; Linux is needed")


def main() -> None:
    request = json.loads(sys.argv[1])
    case = models.ModelCase(**request["case"])
    torch.set_num_threads(request["threads"])
    with torch.no_grad():
        print(json.dumps(peak_of_prefill(request["name"], case, request["device"])))


if __name__ == "__main__":
    main()
