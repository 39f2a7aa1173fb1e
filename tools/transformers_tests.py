"""Run transformers' own tests of five model families with VRGA and without, and compare.

    python tools/transformers_tests.py PATH_OF_A_TRANSFORMERS_CHECKOUT

At gamma = 0 an enabled model is the model itself, so a test that passes without VRGA passes with
it: exit status 1 if one does not, or if VRGA refused a model, or read no prompt of a family's.
See CONTRIBUTING.md.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

# Model type -> the class that tests its multimodal models, generation included.
FAMILIES = {
    "llava": "LlavaForConditionalGenerationModelTest",
    "qwen2_5_vl": "Qwen2_5_VLModelTest",
    "gemma3": "Gemma3Vision2TextModelTest",  # sliding windows
    "internvl": "InternVLModelTest",
    "qwen3_vl": "Qwen3VLModelTest",
}
# Tests that compare a configuration's `_attn_implementation` with "sdpa" or "eager", or a model's
# after `set_attn_implementation`; an enabled language model's is "vrga" or "vrga_eager". Another
# error than of that comparison counts in them, too.
INTROSPECTION = (
    "test_attn_implementation_composite_models",
    "test_can_set_attention_dynamically",
    "test_can_set_attention_dynamically_composite_model",
    "test_sdpa_can_dispatch_composite_models",
)
COMPARISON = re.compile(r"\._attn_implementation ==.*\nE +AssertionError")
COLUMNS = ("passed without", "passed with", "introspection", "differs", "enabled", "rows read")


@dataclass(frozen=True)
class Run:
    """What ``enable_all.py`` wrote down about one family.

    Attributes
    ----------
    outcomes
        Test -> ``"passed"``, ``"skipped"`` or ``"failed"``.
    errors
        Failed test -> its traceback.
    enabled
        Model class -> how many models VRGA was enabled in.
    refused
        Model class and reason -> how many models :func:`vrga_ext.enable` refused.
    read
        ``"rows"`` -> how many rows of prompts VRGA analysed.
    """

    outcomes: dict[str, str]
    errors: dict[str, str]
    enabled: Counter[str]
    refused: Counter[str]
    read: Counter[str]

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read the file that the plugin wrote."""
        found = json.loads(path.read_text())
        counts = {name: Counter(found[name]) for name in ("enabled", "refused", "read")}
        return cls(found["outcomes"], found["errors"], **counts)

    def passed(self) -> set[str]:
        """The tests that passed."""
        return {test for test, outcome in self.outcomes.items() if outcome == "passed"}


def is_introspection(test: str, error: str) -> bool:
    """Whether a test failed because it asks for the name of the attention implementation."""
    name = test.rsplit("::")[-1]
    return name in INTROSPECTION and COMPARISON.search(error) is not None


def run_family(
    checkout: Path, family: str, with_vrga: bool, folder: Path, minutes: float
) -> Run | str:
    """Run a family's tests in a process of their own; a string says why there is no result."""
    name = f"{family}-{'with' if with_vrga else 'without'}"
    outcomes, log = folder / f"{name}.json", folder / f"{name}.log"
    test = f"tests/models/{family}/test_modeling_{family}.py::{FAMILIES[family]}"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-W", "ignore"]
    command += ["-p", "no:cacheprovider", "-p", "enable_all", "--outcomes", str(outcomes), test]
    if with_vrga:
        command.append("--vrga")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    outcomes.unlink(missing_ok=True)  # of an earlier run
    with log.open("w") as stream:
        try:
            subprocess.run(
                command,
                cwd=checkout,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=60 * minutes,
            )
        except subprocess.TimeoutExpired:
            return f"{name}: not done after {minutes:g} minutes, see {log}"
    if not outcomes.exists():
        return f"{name}: pytest died, see {log}"
    run = Run.load(outcomes)
    return run if run.outcomes else f"{name}: no test was run, see {log}"


def compare(family: str, plain: Run, ours: Run) -> tuple[list[int], list[str]]:
    """A family's numbers, one for each of ``COLUMNS``, and what is wrong."""
    lost, gained = plain.passed() - ours.passed(), ours.passed() - plain.passed()
    aside = {test for test in lost if is_introspection(test, ours.errors.get(test, ""))}
    faults = []
    for test in sorted(lost - aside):
        came = ours.outcomes.get(test, "not run")
        faults.append(f"{test}: {came} with VRGA\n{ours.errors.get(test, '')}")
    faults += [f"{test}: passed with VRGA only" for test in sorted(gained)]
    differing = len(faults)
    faults += [f"{family}: refused {times} x {why}" for why, times in ours.refused.items()]
    rows = ours.read["rows"]
    if not rows:
        faults.append(f"{family}: no prompt was read with VRGA")
    counts = [len(tests) for tests in (plain.passed(), ours.passed(), aside)]
    return [*counts, differing, ours.enabled.total(), rows], faults


def check_version(checkout: Path) -> str:
    """The version of transformers, which is that of its tests.

    Raises
    ------
    typer.BadParameter
        The checkout is no checkout, or one of another version than is installed.
    """
    package = checkout / "src" / "transformers" / "__init__.py"
    if not package.exists() or not (checkout / "tests").is_dir():
        raise typer.BadParameter(f"wanted a checkout with src/ and tests/, got {checkout}")
    (got,) = re.findall(r'^__version__ = "(.+)"', package.read_text(), re.M)
    installed = importlib.metadata.version("transformers")
    if got != installed:
        raise typer.BadParameter(f"wanted tests of transformers {installed}, got those of {got}")
    return installed


def main(
    checkout: Annotated[
        Path, typer.Argument(file_okay=False, help="Checkout of the installed transformers.")
    ],
    family: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(FAMILIES)}; all without it.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="For logs and outcomes; a temporary one without it.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="At most, per family, each way.")] = 30,
) -> None:
    """Run transformers' own tests with VRGA and without, and compare them test by test."""
    families = family or list(FAMILIES)
    if unknown := set(families).difference(FAMILIES):
        raise typer.BadParameter(f"family: wanted of {', '.join(FAMILIES)}, got {unknown}")
    version = check_version(checkout)
    folder = (folder or Path(tempfile.mkdtemp(prefix="transformers-tests-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    table = Table("family", *COLUMNS, title=f"transformers {version}, gamma = 0")
    faults: list[str] = []
    for name in families:
        plain, ours = (run_family(checkout, name, on, folder, minutes) for on in (False, True))
        if isinstance(plain, str) or isinstance(ours, str):
            faults += [run for run in (plain, ours) if isinstance(run, str)]
            continue
        row, wrong = compare(name, plain, ours)
        table.add_row(name, *map(str, row))
        faults += wrong
    console = Console()
    console.print(table)
    for fault in faults:
        console.print(fault, markup=False, style="red")
    console.print(f"logs: {folder}", markup=False)
    raise typer.Exit(bool(faults))


if __name__ == "__main__":
    typer.run(main)
