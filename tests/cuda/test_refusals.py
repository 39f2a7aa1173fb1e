"""What the CUDA kernels do not serve is named, and runs on the reference; shown without a GPU."""

from __future__ import annotations

import pytest
import torch

from vrga_ext import _build_info, _library

BUILT = "8.0;8.6;8.9;9.0;10.0+PTX;12.0+PTX"


@pytest.fixture
def gpu(monkeypatch):
    """An imaginary GPU: sets its compute capability and what was built."""

    def make(capability: tuple[int, int], built: str = BUILT) -> None:
        monkeypatch.setattr(_build_info, "cuda_architectures", built)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return make


@pytest.mark.parametrize(
    "capability",
    [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1), (13, 0)],
)
def test_served(gpu, capability):
    gpu(capability)
    assert _library.cuda_unsupported_reason(0, 128) == ""


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_gpus_without_a_kernel_are_named(gpu, capability):
    gpu(capability)
    reason = _library.cuda_unsupported_reason(0, 128)
    assert f"compute capability {capability[0]}.{capability[1]} (built for {BUILT}" in reason


def test_a_build_for_one_gpu_serves_that_one(gpu):
    gpu((9, 0), built="9.0")
    assert _library.cuda_unsupported_reason(0, 128) == ""
    gpu((10, 0), built="9.0a")
    assert "10.0" in _library.cuda_unsupported_reason(0, 128)
    gpu((9, 0), built="Hopper")
    assert _library.cuda_unsupported_reason(0, 128) == ""


def test_head_dim_and_missing_build_are_named(gpu):
    gpu((9, 0))
    assert _library.cuda_unsupported_reason(0, 256) == ""
    assert "head dim of 320 (at most 256)" in _library.cuda_unsupported_reason(0, 320)
    gpu((9, 0), built="")
    assert "pip install . builds them" in _library.cuda_unsupported_reason(0, 128)
