"""The races of the operations."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from bench.goals import GPU_SHAPES
from bench.inputs import Case, Shape, make_inputs
from bench.race import Settings, Unavailable
from bench.rivals import Rival, check, is_ours
from bench.timing import Sample, sample_of, sets_of_inputs

SHAPES = (
    Shape(1, 28, 4, 4096, 128),
    Shape(1, 16, 2, 16384, 128),
    Shape(4, 16, 2, 2048, 128),
    Shape(1, 14, 2, 2048, 64),
)
SMOKE_SHAPE = Shape(2, 14, 2, 160, 64)


class Operation:
    """One case of an operation: inputs, and what of the rivals runs on them."""

    def __init__(self, case: Case, rivals: Mapping[str, Rival], settings: Settings) -> None:
        self._case, self._rivals, self._settings = case, rivals, settings
        device = settings.device
        reads = [self._read(rival) for rival in rivals.values()]
        scores_only = all(rival.moves == "scores" for rival in rivals.values())
        held = case.scores_bytes if scores_only else case.held_bytes
        count = sets_of_inputs(min(reads), held, device) if settings.timed else 1
        self._inputs = deque(make_inputs(case, device, seed, scores_only) for seed in range(count))
        self._runs: dict[str, Callable[..., Any]] = {}

    def enter(self, name: str) -> dict[str, Any]:
        """Check a rival on the first inputs."""
        rival, settings = self._rivals[name], self._settings
        if settings.smoke and name.startswith("Flex"):
            raise Unavailable("compiles for half a minute; left out of the smoke size")
        first = self._inputs[0]
        try:
            run = rival.make(self._case)
            result = run(first)
        except AssertionError:
            raise
        except Exception as error:  # a peer may refuse a shape, a dtype or a device
            if is_ours(name):
                raise
            text = str(error).strip().splitlines()
            raise Unavailable(text[0] if text else type(error).__name__) from error
        self._runs[name] = run
        return {
            "device": settings.device,
            "bytes": self._read(rival) * (2 if rival.moves == "scores" else 1),
            "error": check(rival, first, result),
        }

    def _read(self, rival: Rival) -> int:
        """Bytes of the inputs that it reads at least."""
        if rival.moves == "scores":
            return self._case.scores_bytes
        return self._case.kv_bytes // (2 if rival.moves == "K" else 1)

    def sample(self, name: str) -> Sample:
        """The timed call."""
        host_reads = self._rivals[name].host_reads
        return sample_of(self._runs[name], self._inputs, self._settings.device, host_reads)


def on_device(rivals: Mapping[str, Rival]) -> Callable[[Settings], list[str]]:
    """Names of the rivals that exist on the device of a run."""
    return lambda settings: [
        name for name, rival in rivals.items() if settings.device in rival.devices
    ]


def cases(settings: Settings) -> list[Case]:
    """Shapes of a decode step, in every dtype of the kernels; on a GPU those with goals, bf16."""
    if settings.smoke:
        return [Case(SMOKE_SHAPE, dtype) for dtype in ("float32", "bfloat16", "float16")]
    if settings.device == "cuda":
        return [Case(shape, "bfloat16") for shape in GPU_SHAPES.values()]
    return [Case(shape, dtype) for shape in SHAPES for dtype in ("float32", "bfloat16", "float16")]
