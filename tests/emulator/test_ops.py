"""The tests of the CPU kernels, on the CUDA kernels."""

from tests.ops.test_decode import *  # noqa: F403
from tests.ops.test_edges import *  # noqa: F403
from tests.ops.test_layout import *  # noqa: F403
from tests.ops.test_statistics import *  # noqa: F403
