"""The ratios that ought to be reached, and which are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.inputs import Case, Shape
from bench.results import Groups, Result
from bench.rivals import (
    ADAPTER,
    DYNAMIC,
    LOOP,
    NOT_ENABLED,
    OFF,
    PACKED,
    ROWS,
    STATIC,
    STORED,
)

# Shapes of a decode step with goals of their own on a GPU.
GPU_SHAPES = {
    "A": Shape(1, 28, 4, 4096, 128),
    "B": Shape(16, 28, 4, 4096, 128),
    "C": Shape(1, 28, 4, 32768, 128),
    "D": Shape(8, 16, 2, 8192, 128),
}
_GPU_CASES = {str(Case(shape, "bfloat16")): name for name, shape in GPU_SHAPES.items()}

Times = Mapping[str, float]  # rival -> seconds


@dataclass(frozen=True)
class Goal:
    """One ratio; ``at_most``: smaller is better."""

    where: str
    name: str
    value: float
    must: float
    stretch: float
    at_most: bool

    @property
    def verdict(self) -> str:
        for limit, word in ((self.stretch, "stretch"), (self.must, "met")):
            if (self.value <= limit) if self.at_most else (self.value >= limit):
                return word
        return "missed"

    @property
    def texts(self) -> tuple[str, str, str, str, str, str]:
        """Where, name, measured, must, stretch, verdict."""
        sign = "≤" if self.at_most else "≥"
        limits = (f"{sign} {self.must:g}", f"{sign} {self.stretch:g}")
        return self.where, self.name, f"{self.value:.3g}", *limits, self.verdict


def goals(groups: Groups) -> list[Goal]:
    """The goals whose implementations ran."""
    found: list[Goal] = []
    for case, rivals in groups.get("decode_attention", {}).items():
        if DYNAMIC not in rivals:
            continue
        times = {name: result.seconds for name, result in rivals.items()}
        device = rivals[DYNAMIC].extra["device"]
        if device == "cpu":
            found += _decode_on_cpu(case, times)
        elif case in _GPU_CASES:
            found += _decode_on_gpu(case, times, rivals[DYNAMIC])
    for case, rivals in groups.get("row_statistics", {}).items():
        if not {ROWS, DYNAMIC} <= rivals.keys():
            continue
        # On a GPU the goal is for 64 MB of K and V or more; A has 8.
        if rivals[DYNAMIC].extra["device"] == "cpu" or _GPU_CASES.get(case) in ("B", "C", "D"):
            value = rivals[ROWS].seconds / rivals[DYNAMIC].seconds
            found.append(Goal(case, "row_statistics / decode", value, 0.65, 0.55, True))
    for op, limits in {"prefill": (1.05, 1.03), "decode step": (1.05, 1.03)}.items():
        for case, rivals in groups.get(op, {}).items():
            for name in (ADAPTER, STATIC, DYNAMIC):
                if name in rivals and NOT_ENABLED in rivals:
                    value = rivals[name].seconds / rivals[NOT_ENABLED].seconds
                    found.append(Goal(case, f"{op}: {name} / {NOT_ENABLED}", value, *limits, True))
    for case, rivals in groups.get("peak memory", {}).items():
        for name in (STATIC, DYNAMIC):
            if name in rivals and NOT_ENABLED in rivals:
                value = rivals[name].extra["peak_bytes"] / rivals[NOT_ENABLED].extra["peak_bytes"]
                title = f"peak memory: {name} / {NOT_ENABLED}"
                found.append(Goal(case, title, value, 1.01, 1.0, True))
    return found


def _decode_on_cpu(case: str, times: Times) -> Iterator[Goal]:
    limits = {PACKED: (1.0, 2.0), STORED: (3.0, 4.0), LOOP: (20.0, 40.0)}
    for name, (must, stretch) in limits.items():
        if name in times:
            value = times[name] / times[DYNAMIC]
            yield Goal(case, f"{name} / {DYNAMIC}", value, must, stretch, False)


def _decode_on_gpu(case: str, times: Times, dynamic: Result) -> Iterator[Goal]:
    shape, ours = _GPU_CASES[case], times[DYNAMIC]
    if shape == "A":
        yield Goal(case, "time, us", ours * 1e6, 9.0, 6.5, True)
    else:
        share = dynamic.extra["bytes"] / ours / 1e9 / dynamic.extra["copy_gbs"]
        limits = (0.85, 0.92) if shape == "B" else (0.75, 0.85)
        yield Goal(case, "share of copy bandwidth", share, *limits, False)
    if OFF in times:
        limits = (1.10, 1.03) if shape == "A" else (1.03, 1.01)
        yield Goal(case, f"{DYNAMIC} / {OFF}", ours / times[OFF], *limits, True)
        if STATIC in times:
            yield Goal(case, f"{STATIC} / {OFF}", times[STATIC] / times[OFF], 1.02, 1.0, True)
    sdpa = [times[n] for n in ("SDPA FLASH", "SDPA FLASH packed", "SDPA cuDNN") if n in times]
    if sdpa:
        limits = (1.2, 1.6) if shape == "A" else (1.05, 1.2)
        yield Goal(case, f"best SDPA / {DYNAMIC}", min(sdpa) / ours, *limits, False)
    flashinfer = [seconds for name, seconds in times.items() if name.startswith("FlashInfer")]
    if flashinfer:
        limits = (1.15, 1.5) if shape == "A" else (1.0, 1.08)
        yield Goal(case, f"best FlashInfer / {DYNAMIC}", min(flashinfer) / ours, *limits, False)
    if STORED in times and shape in "AB":
        limits = (4.0, 8.0) if shape == "A" else (8.0, 12.0)
        yield Goal(case, f"{STORED} / {DYNAMIC}", times[STORED] / ours, *limits, False)
