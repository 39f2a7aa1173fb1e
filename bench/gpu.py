"""Times a decode step on a GPU against its peers; JSON and Markdown in bench/results.

    python -m bench.gpu [--replays 30] [--out bench/results]

Honest timing: enough distinct K and V buffers to exceed five times the L2 cache, one call per
buffer captured in a CUDA graph, median over replays with the order of the implementations
alternated, copy bandwidth measured in the same process, every output checked against fp64 first.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import vrga_ext
from bench.gpu_peers import Call, Run, check, implementations, static_bias
from bench.gpu_report import markdown
from bench.peers import Shape
from vrga_ext.reference import FOCUS_FLAG, IMAGE_FLAG

SHAPES = {
    "A": Shape(1, 28, 4, 4096, 128),
    "B": Shape(16, 28, 4, 4096, 128),
    "C": Shape(1, 28, 4, 32768, 128),
    "D": Shape(8, 16, 2, 8192, 128),
}
MEMORY_SHARE = 0.5  # of the GPU, for rotated buffers


def make_call(shape: Shape, generator: torch.Generator) -> Call:
    """Random data; half of the keys are image tokens, every eighth of those is focus."""

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device="cuda", dtype=torch.bfloat16)

    flags = torch.zeros(shape.batch, shape.keys, dtype=torch.uint8, device="cuda")
    image = slice(shape.keys // 4, 3 * shape.keys // 4)
    flags[:, image] = IMAGE_FLAG
    flags[:, image][:, ::8] |= FOCUS_FLAG
    return Call(
        normal(shape.batch, shape.heads, 1, shape.dim),
        normal(shape.batch, shape.heads_kv, shape.keys, shape.dim),
        normal(shape.batch, shape.heads_kv, shape.keys, shape.dim),
        flags,
        static_bias(flags, torch.bfloat16),
    )


def capture(run: Run, calls: list[Call]) -> torch.cuda.CUDAGraph:
    """One graph with a call per set of inputs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            run(call)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            run(call)
    return graph


def replay_us(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def copy_bandwidth() -> float:
    """GB/s, bytes read plus bytes written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return 2 * source.numel() / statistics.median(times) / 1e6


def measure(name: str, shape: Shape, replays: int) -> dict[str, Any]:
    """Median microseconds per call of every implementation that runs."""
    properties = torch.cuda.get_device_properties(0)
    kv_bytes = 2 * shape.batch * shape.heads_kv * shape.keys * shape.dim * 2
    wanted = max(2, math.ceil(5 * properties.L2_cache_size / kv_bytes))
    count = min(wanted, max(2, int(MEMORY_SHARE * properties.total_memory / kv_bytes)))
    generator = torch.Generator("cuda").manual_seed(0)
    calls = [make_call(shape, generator) for _ in range(count)]

    found, missing = implementations(shape.batch)
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    errors: dict[str, float] = {}
    for label, run in found.items():
        try:
            errors[label] = check(label, run(calls[0]), calls[0])
            graphs[label] = capture(run, calls)
        except Exception as error:  # a peer may refuse a shape, a dtype or a capture
            if label.startswith(("vrga", "row")):
                raise
            torch.cuda.synchronize()
            missing[label] = str(error).splitlines()[0] if str(error) else type(error).__name__
    times: dict[str, list[float]] = {label: [] for label in graphs}
    for i in range(replays + 3):
        order = list(graphs) if i % 2 == 0 else list(reversed(graphs))
        for label in order:
            time = replay_us(graphs[label]) / count
            if i >= 3:
                times[label].append(time)
    return {
        "name": name,
        "text": f"{shape}, {count} buffers",
        "kv_bytes": kv_bytes,
        "times_us": {label: statistics.median(values) for label, values in times.items()},
        "errors": {label: errors[label] for label in times},
        "missing": missing,
    }


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, str]:
    driver = output_of(
        "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"
    )
    info = vrga_ext.build_info()
    return {
        "GPU": torch.cuda.get_device_name(0),
        "driver": driver,
        "torch": torch.__version__,
        "CUDA of the kernels": info.cuda_version or "none",
        "vrga_ext": info.version,
        "commit": output_of("git", "rev-parse", "--short=12", "HEAD"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replays", type=int, default=30)
    parser.add_argument("--shapes", default="".join(SHAPES), help="letters, such as AC")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or not vrga_ext.build_info().cuda_architectures:
        print(
            f"needs a CUDA GPU and a CUDA build of vrga_ext, got:\n{vrga_ext.build_info()}",
            file=sys.stderr,
        )
        return 1
    report: dict[str, Any] = {"machine": machine(), "copy_gbs": copy_bandwidth(), "shapes": []}
    for name in arguments.shapes:
        with torch.no_grad():
            report["shapes"].append(measure(name, SHAPES[name], arguments.replays))
        torch.cuda.empty_cache()
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = "gpu_" + report["machine"]["GPU"].lower().replace(" ", "_")
    (arguments.out / f"{stem}.json").write_text(json.dumps(report, indent=2) + "\n")
    page = markdown(report)
    (arguments.out / f"{stem}.md").write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
