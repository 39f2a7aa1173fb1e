"""The tests of the CPU kernels, on a GPU."""

from tests.gpu.marks import NEEDS_GPU
from tests.ops.test_decode import *  # noqa: F403
from tests.ops.test_edges import *  # noqa: F403
from tests.ops.test_layout import *  # noqa: F403
from tests.ops.test_statistics import *  # noqa: F403

pytestmark = NEEDS_GPU
