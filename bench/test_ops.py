"""The three operations against their peers; one table per shape and dtype."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.peers import DECODE_PEERS, ROW_PEERS, SOFTMAX_PEERS, Inputs, Peer, check


def measure(benchmark: BenchmarkFixture, inputs: Inputs, name: str, peer: Peer, op: str) -> None:
    check(inputs, name, peer(inputs))
    dtype = str(inputs.query.dtype).removeprefix("torch.")
    benchmark.group = f"{op}, {inputs.shape} {dtype}"
    benchmark.extra_info["kv_bytes"] = inputs.kv_bytes
    with torch.no_grad():
        benchmark(peer, inputs)


@pytest.mark.parametrize("name", DECODE_PEERS)
def test_decode_attention(benchmark: BenchmarkFixture, inputs: Inputs, name: str) -> None:
    measure(benchmark, inputs, name, DECODE_PEERS[name], "decode_attention")


@pytest.mark.parametrize("name", ROW_PEERS)
def test_row_statistics(benchmark: BenchmarkFixture, inputs: Inputs, name: str) -> None:
    measure(benchmark, inputs, name, ROW_PEERS[name], "row_statistics")


@pytest.mark.parametrize("name", SOFTMAX_PEERS)
def test_reweighted_softmax(benchmark: BenchmarkFixture, inputs: Inputs, name: str) -> None:
    measure(benchmark, inputs, name, SOFTMAX_PEERS[name], "reweighted_softmax")
