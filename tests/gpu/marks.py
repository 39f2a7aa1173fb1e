"""What a test on a GPU needs."""

from __future__ import annotations

import pytest
import torch

import vrga_ext

HAS_GPU = torch.cuda.is_available() and bool(vrga_ext.build_info().cuda_architectures)
NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA GPU and a CUDA build of vrga_ext"),
]
