"""A few calls of every kernel, small enough for compute-sanitizer.

compute-sanitizer --tool memcheck python -m tests.gpu.sanitized
"""

from __future__ import annotations

import torch

from tests.ops.cases import attention_case
from vrga_ext import ops

CASES = [
    {"dtype": torch.bfloat16, "dim": 128, "group": 7, "keys": 333},
    {"dtype": torch.bfloat16, "dim": 128, "group": 16, "keys": 333, "mask": "padding"},
    {"dtype": torch.float16, "dim": 64, "group": 3, "keys": 517, "mask": "bias", "rows": 3},
    {"dtype": torch.float16, "dim": 80, "group": 9, "keys": 200, "mask": "float16"},
    {"dtype": torch.bfloat16, "dim": 96, "group": 8, "keys": 65, "softcap": 20.0},
    {"dtype": torch.bfloat16, "dim": 256, "group": 10, "keys": 300, "mask": "causal", "rows": 2},
    {"dtype": torch.float32, "dim": 33, "group": 5, "keys": 700, "mask": "heads"},
    {"dtype": torch.bfloat16, "dim": 128, "group": 7, "keys": 700, "gate": "static"},
]


def main() -> None:
    for options in CASES:
        dtype = options["dtype"]
        made = attention_case(**options).arguments(dtype)
        case = {n: t.cuda() if isinstance(t, torch.Tensor) else t for n, t in made.items()}
        decode = ops.decode_attention(**case)
        rows = {n: t for n, t in case.items() if n not in ("value", "gate")}
        rows["query"] = rows["query"][:, :, 0].contiguous()
        if "attn_mask" in rows and rows["attn_mask"].dim() >= 2:
            rows["attn_mask"] = rows["attn_mask"][..., :1, :]
        ops.row_statistics(**rows)
        keys = case["key"].shape[2]
        scores = torch.randn(1, 4, 2, keys, device="cuda", dtype=dtype)
        ops.reweighted_softmax(scores, case["key_flags"])
        torch.cuda.synchronize()
        assert decode.output.isfinite().all(), options
    print(f"{len(CASES)} cases of every operation")


if __name__ == "__main__":
    main()
