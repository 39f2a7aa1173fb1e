"""What the CPU kernels serve and the CUDA kernels do not."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import DTYPES, attention_case, check_decode, check_statistics, max_error
from vrga_ext import ops, reference


@pytest.mark.parametrize("scale", [1e7, 1e10, 1e15, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_without_fractions(simd, dtype, scale):
    """Rounded, they are further from themselves than exp can bridge; the highest takes it all."""
    case = attention_case(keys=300, dim=80, dtype=dtype, scale=scale)
    result = check_decode(case, dtype)
    assert result.output.isfinite().all()
    arguments = case.arguments(dtype)
    del arguments["value"]
    arguments["query"] = arguments["query"][:, :, 0]
    rows = ops.row_statistics(**arguments)
    exact = {name: t.double() if name in ("query", "key") else t for name, t in arguments.items()}
    expected = reference.row_statistics(**exact)
    check_statistics(rows.statistics, expected.statistics)
    assert max_error(rows.image_attention, expected.image_attention) < 1e-6


def test_a_million_value_columns(simd):
    case = attention_case(heads_kv=1, group=1, keys=3, dim=8, dim_v=1_000_003)
    check_decode(case, torch.float32)
