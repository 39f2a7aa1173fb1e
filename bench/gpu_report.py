"""The goals of a decode step on a GPU, and the table that says which are met."""

from __future__ import annotations

from typing import Any, NamedTuple

PEERS = ("sdpa FLASH", "sdpa FLASH packed", "sdpa cuDNN")


class Goal(NamedTuple):
    """One ratio that should be reached; ``at_most``: smaller is better."""

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


def goals(shape: str, times_us: dict[str, float], kv_bytes: int, copy_gbs: float) -> list[Goal]:
    """The goals that apply to a shape ("A" to "D") and whose implementations ran."""
    ours, off = times_us["vrga dynamic"], times_us["vrga off"]
    found = []
    if shape == "A":
        found.append(Goal("time, us", ours, 9.0, 6.5, True))
    else:
        share = kv_bytes / ours / 1e3 / copy_gbs
        must, stretch = (0.85, 0.92) if shape == "B" else (0.75, 0.85)
        found.append(Goal("share of copy bandwidth", share, must, stretch, False))
        rows = times_us["row_statistics"] / ours
        found.append(Goal("row_statistics / decode", rows, 0.65, 0.55, True))
    on_off = (1.10, 1.03) if shape == "A" else (1.03, 1.01)
    found.append(Goal("dynamic gate / off", ours / off, *on_off, True))
    found.append(Goal("static gate / off", times_us["vrga static"] / off, 1.02, 1.00, True))
    best = [times_us[name] for name in PEERS if name in times_us]
    if best:
        limits = (1.2, 1.6) if shape == "A" else (1.05, 1.2)
        found.append(Goal("best SDPA / ours", min(best) / ours, *limits, False))
    if "flashinfer" in times_us:
        limits = (1.15, 1.5) if shape == "A" else (1.0, 1.08)
        found.append(Goal("FlashInfer / ours", times_us["flashinfer"] / ours, *limits, False))
    if "eager" in times_us and shape in "AB":
        limits = (4.0, 8.0) if shape == "A" else (8.0, 12.0)
        found.append(Goal("eager / ours", times_us["eager"] / ours, *limits, False))
    return found


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: machine, times, goals, what is missing."""
    machine = report["machine"]
    lines = ["# Decode kernels on a GPU", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines.append(f"- device copy: {report['copy_gbs']:.0f} GB/s (read + write)")
    lines += ["", "Cold L2 (rotated buffers), CUDA-graph replay, median; bf16, D = 128.", ""]
    for shape in report["shapes"]:
        times = shape["times_us"]
        lines += [f"## {shape['name']}: {shape['text']}", ""]
        lines += ["| implementation | us | GB/s of K and V | error vs fp64 | / vrga dynamic |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for name, time in sorted(times.items(), key=lambda item: item[1]):
            size = shape["kv_bytes"] / (2 if name == "row_statistics" else 1)
            ratio = time / times["vrga dynamic"]
            error = shape["errors"][name]
            lines.append(
                f"| {name} | {time:.2f} | {size / time / 1e3:.0f} | {error:.1e} | {ratio:.2f} |"
            )
        lines += ["", "| goal | measured | must | stretch | |", "| --- | --- | --- | --- | --- |"]
        for goal in goals(shape["name"], times, shape["kv_bytes"], report["copy_gbs"]):
            sign = "<=" if goal.at_most else ">="
            lines.append(
                f"| {goal.name} | {goal.value:.3g} | {sign} {goal.must} | {sign} {goal.stretch} "
                f"| {goal.verdict} |"
            )
        lines += [f"- not measured: {name}: {why}" for name, why in shape["missing"].items()]
        lines.append("")
    return "\n".join(lines)
