"""Decode step on the CPU as ratios: one process, implementations interleaved, medians.

    python bench/cpu_ratios.py [--threads 2] [--repeats 40] [--smoke]

A ratio above 1 says how many times faster ``vrga_ext`` with its dynamic gate on is.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.peers import INTERLEAVED_PEERS, SHAPES, SMOKE_SHAPES, Inputs, check, make_inputs


def medians(inputs: Inputs, repeats: int) -> dict[str, float]:
    """Seconds per call; random order in each round: nobody always finds a warm cache."""
    times: dict[str, list[float]] = {name: [] for name in INTERLEAVED_PEERS}
    order = random.Random(0)
    for _ in range(repeats + 2):
        for name in order.sample(list(INTERLEAVED_PEERS), len(INTERLEAVED_PEERS)):
            start = time.perf_counter()
            INTERLEAVED_PEERS[name](inputs)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t[2:]) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Decode step on the CPU as ratios.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--smoke", action="store_true", help="a small shape")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    torch.set_grad_enabled(False)

    from vrga_ext.build_info import build_info

    print(build_info())
    for shape in SMOKE_SHAPES if options.smoke else SHAPES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            inputs = make_inputs(shape, dtype)
            for name, peer in INTERLEAVED_PEERS.items():
                check(inputs, name, peer(inputs))
            seconds = medians(inputs, options.repeats)
            print(f"\n{shape} {str(dtype).removeprefix('torch.')}")
            for name, t in seconds.items():
                rate = inputs.kv_bytes / t / 1e9
                ratio = t / seconds["vrga_ext"]
                print(f"  {name:<30} {t * 1e6:9.1f} us {rate:7.1f} GB/s of K+V {ratio:7.2f}x")


if __name__ == "__main__":
    main()
