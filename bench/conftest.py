"""``pytest bench --benchmark-only``; ``--smoke``: small shapes, to see that everything runs."""

from __future__ import annotations

import pytest
import torch

from bench.peers import SHAPES, SMOKE_SHAPES, Inputs, make_inputs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="small shapes")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "inputs" in metafunc.fixturenames:
        shapes = SMOKE_SHAPES if metafunc.config.getoption("--smoke") else SHAPES
        cases = [(shape, name) for shape in shapes for name in DTYPES]
        ids = [f"{shape} {name}" for shape, name in cases]
        metafunc.parametrize("inputs", cases, ids=ids, indirect=True, scope="module")


@pytest.fixture(scope="module")
def inputs(request: pytest.FixtureRequest) -> Inputs:
    shape, name = request.param
    return make_inputs(shape, DTYPES[name])
