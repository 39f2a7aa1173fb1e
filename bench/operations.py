"""The cases of the operations."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from bench.case import Settings, Unavailable
from bench.implementations import Implementation, check, is_ours
from bench.inputs import Case, Shape, make_inputs
from bench.timing import Sample, sample_of, sets_of_inputs

SHAPES = (
    Shape(1, 28, 4, 4096, 128),
    Shape(1, 16, 2, 16384, 128),
    Shape(4, 16, 2, 2048, 128),
    Shape(1, 14, 2, 2048, 64),
)
GPU_SHAPES = (
    Shape(1, 28, 4, 4096, 128),
    Shape(16, 28, 4, 4096, 128),
    Shape(1, 28, 4, 32768, 128),
    Shape(8, 16, 2, 8192, 128),
)
SMOKE_SHAPE = Shape(2, 14, 2, 160, 64)


class Operation:
    """One case of an operation: inputs, and what of the implementations runs on them."""

    def __init__(
        self, case: Case, implementations: Mapping[str, Implementation], settings: Settings
    ) -> None:
        self._case, self._implementations, self._settings = case, implementations, settings
        device = settings.device
        reads = [self._read(implementation) for implementation in implementations.values()]
        scores_only = all(
            implementation.moves == "scores" for implementation in implementations.values()
        )
        held = case.scores_bytes if scores_only else case.held_bytes
        count = sets_of_inputs(min(reads), held, device) if settings.timed else 1
        self._inputs = deque(make_inputs(case, device, seed, scores_only) for seed in range(count))
        self._runs: dict[str, Callable[..., Any]] = {}

    def check(self, name: str) -> dict[str, Any]:
        """Check an implementation on the first inputs."""
        implementation, settings = self._implementations[name], self._settings
        if settings.smoke and name.startswith("Flex"):
            raise Unavailable("compiles for half a minute; left out of the smoke size")
        first = self._inputs[0]
        try:
            run = implementation.make(self._case)
            result = run(first)
        except AssertionError:
            raise
        except Exception as error:  # a baseline may refuse a shape, a dtype or a device
            if is_ours(name):
                raise
            text = str(error).strip().splitlines()
            raise Unavailable(text[0] if text else type(error).__name__) from error
        self._runs[name] = run
        return {
            "device": settings.device,
            "bytes": self._read(implementation) * (2 if implementation.moves == "scores" else 1),
            "error": check(implementation, first, result),
        }

    def _read(self, implementation: Implementation) -> int:
        """Bytes of the inputs that it reads at least."""
        if implementation.moves == "scores":
            return self._case.scores_bytes
        return self._case.kv_bytes // (2 if implementation.moves == "K" else 1)

    def sample(self, name: str) -> Sample:
        """The timed call."""
        host_reads = self._implementations[name].host_reads
        return sample_of(self._runs[name], self._inputs, self._settings.device, host_reads)


def on_device(implementations: Mapping[str, Implementation]) -> Callable[[Settings], list[str]]:
    """Names of the implementations that exist on the device of a run."""
    return lambda settings: [
        name
        for name, implementation in implementations.items()
        if settings.device in implementation.devices
    ]


def cases(settings: Settings) -> list[Case]:
    """Shapes of a decode step, in every dtype of the kernels; on a GPU in bfloat16."""
    if settings.smoke:
        return [Case(SMOKE_SHAPE, dtype) for dtype in ("float32", "bfloat16", "float16")]
    if settings.device == "cuda":
        return [Case(shape, "bfloat16") for shape in GPU_SHAPES]
    return [Case(shape, dtype) for shape in SHAPES for dtype in ("float32", "bfloat16", "float16")]
