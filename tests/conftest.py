"""Options and settings of all tests.

One thread: the models are tiny, and results must not depend on the machine."""

from __future__ import annotations

import os

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--write-support-matrix",
        action="store_true",
        help="write the README's table of families and modes from what the tests did",
    )


def pytest_configure():
    """This process says where the operations are of other sources; those it starts need not."""
    said = "ignore:vrga_ext was compiled from other sources"
    others = filter(None, [os.environ.get("PYTHONWARNINGS")])
    os.environ["PYTHONWARNINGS"] = ",".join([*others, said])


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
