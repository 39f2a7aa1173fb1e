"""The host layer checks for itself, whoever calls it."""

from __future__ import annotations

import pytest
import torch

from vrga_ext.reference import IMAGE_FLAG

GATE = ("dynamic", 1.5, 1.0, 0.6, 0.2)


def decode(query, key, value, flags, mask=None, gate=GATE):
    operation = torch.ops.vrga_emulated.decode_attention
    return operation(query, key, value, flags, mask, None, 0.1, 0.0, *gate)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 320}, "query: wanted a head dim of at most 256"),
        ({"dim_v": 320}, "value: wanted a head dim of at most 256"),
        (
            {"dtype": torch.float64},
            "query: wanted torch.float32, torch.bfloat16 or torch.float16, got torch.float64",
        ),
        ({"keys": 2**31}, "key: wanted fewer than 2^31 keys"),
        ({"heads": 3}, "key: wanted a number of heads that divides 3, got 2"),
        ({"gate": ("both", 1.5, 1.0, 0.6, 0.2)}, "gate: wanted 'static' or 'dynamic', got 'both'"),
        ({"mask": torch.ones(7, dtype=torch.bool)}, "attn_mask: wanted a shape that broadcasts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_refused_by_name(emulator_library, change, message):
    options = {"dim": 64, "dim_v": None, "dtype": torch.float32, "heads": 4, "keys": 9}
    options |= {"gate": GATE} | change
    dim, dtype, keys = options["dim"], options["dtype"], options["keys"]
    query = torch.randn(1, options["heads"], 1, dim, dtype=dtype)
    key = torch.randn(1, 2, 1, dim, dtype=dtype).expand(1, 2, keys, dim)
    value = torch.randn(1, 2, 1, options["dim_v"] or dim, dtype=dtype).expand(1, 2, keys, -1)
    flags = torch.full((1, 9), IMAGE_FLAG, dtype=torch.uint8)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        decode(query, key, value, flags, options.get("mask"), options["gate"])
    assert message in str(caught.value)
