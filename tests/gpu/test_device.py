"""What only a GPU can show: streams, graphs, devices, no synchronisation, refusals."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.gpu import overlap
from tests.gpu.marks import NEEDS_GPU
from tests.ops.cases import attention_case
from vrga_ext import ops, reference

pytestmark = NEEDS_GPU


def arguments(dtype=torch.bfloat16, device="cuda", **case):
    made = attention_case(dtype=dtype, **case).arguments(dtype)
    return {n: t.to(device) if isinstance(t, torch.Tensor) else t for n, t in made.items()}


def test_repeats_bit_for_bit():
    case = arguments(batch=2, keys=3000, group=7, dim=128)
    first = ops.decode_attention(**case)
    for _ in range(20):
        again = ops.decode_attention(**case)
        assert torch.equal(again.output, first.output)
        assert all(map(torch.equal, again.statistics, first.statistics))


def test_runs_on_the_current_stream():
    case = arguments(keys=2000, group=7, dim=128)
    expected = ops.decode_attention(**case).output
    key, case["key"] = case["key"], torch.zeros_like(case["key"])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # whoever does not wait for this reads zeros
        case["key"].copy_(key)
        output = ops.decode_attention(**case).output
    stream.synchronize()
    assert torch.equal(output, expected)


def test_never_synchronises():
    case = arguments(keys=2000, group=7, dim=128, mask="padding")
    rows = {n: t for n, t in case.items() if n != "value"}
    rows["query"] = rows["query"][:, :, 0]
    scores = torch.randn(1, 4, 1, 500, device="cuda")
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.decode_attention(**case)
        ops.row_statistics(**rows)
        ops.reweighted_softmax(scores, case["key_flags"][:, :400])
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_overlapping_launches_wait_for_what_they_read(tmp_path):
    """Each kernel reads what the one before has written, and may start early."""
    file = tmp_path / "alone.pt"
    subprocess.run(
        [sys.executable, "-m", "tests.gpu.overlap", str(file)],
        env=os.environ | {"CUDA_LAUNCH_BLOCKING": "1"},
        check=True,
    )
    for dtype, expected in zip(overlap.DTYPES, torch.load(file), strict=True):
        case = overlap.inputs(dtype, "cuda")
        for _ in range(5):
            assert all(map(torch.equal, overlap.chain(*case, length=100), expected))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = overlap.chain(*case, length=100)
        for _ in range(5):
            graph.replay()
            assert all(map(torch.equal, captured, expected))


def test_one_graph_serves_a_growing_cache():
    case = arguments(keys=1024, group=7, dim=128)
    case["attn_mask"] = torch.zeros(1, 1, 1, 1024, dtype=torch.bool, device="cuda")
    for name in ("key", "value"):
        case[name] = case[name].clone()
    full = {name: case[name].clone() for name in ("key", "value")}

    def fill(length):
        case["attn_mask"].fill_(False)[..., :length] = True
        for name in full:  # beyond the length: whatever the cache was allocated with
            case[name].fill_(torch.nan)[:, :, :length] = full[name][:, :, :length]

    fill(300)
    ops.decode_attention(**case)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.decode_attention(**case)
    for length in (1, 64, 300, 777, 1024):
        fill(length)
        graph.replay()
        torch.cuda.synchronize()
        now = {name: case[name][:, :, :length] for name in full}
        expected = reference.decode_attention(
            case["query"].double(),
            *(t.double() for t in now.values()),
            case["key_flags"][:, :length],
        )
        torch.testing.assert_close(captured.output.double(), expected.output, atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(
            captured.statistics.image_ratio.double(),
            expected.statistics.image_ratio,
            atol=1e-4,
            rtol=1e-4,
        )


def test_compiles_to_one_graph():
    case = arguments(keys=500, group=7, dim=128)
    names = list(case)

    def call(*values):
        result = ops.decode_attention(**dict(zip(names, values, strict=True)))
        return result.output * 2, result.statistics.image_ratio

    expected = call(*case.values())
    compiled = torch.compile(call, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        for actual, wanted in zip(compiled(*case.values()), expected, strict=True):
            torch.testing.assert_close(actual, wanted)


def test_a_large_head_dim_runs_on_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "_warned", set())
    case = arguments(dtype=torch.float32, keys=50, dim=320)
    with pytest.warns(UserWarning, match="head dim of 320"):
        result = ops.decode_attention(**case)
    torch.testing.assert_close(result.output, reference.decode_attention(**case).output)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_device_of_its_tensors():
    case = arguments(keys=300, group=7, dim=128, device="cuda:1")
    result = ops.decode_attention(**case)
    assert torch.cuda.current_device() == 0
    assert result.output.device == torch.device("cuda:1")
    expected = ops.decode_attention(**arguments(keys=300, group=7, dim=128))
    assert torch.equal(result.output.cpu(), expected.output.cpu())
