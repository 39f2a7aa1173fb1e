"""The conditions that show the four findings, on one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vrga_ext.analysis import blinded
from vrga_ext.analysis.ablation import Policy, heads_by_policy
from vrga_ext.config import VRGAConfig
from vrga_ext.region import HeadIndex
from vrga_ext.reproduce import interventions
from vrga_ext.reproduce.interventions import Hook
from vrga_ext.reproduce.measure import ImageAttention, Run, measure
from vrga_ext.reproduce.tasks import Task
from vrga_ext.selection import RowStatistics

_HOOK_SEED = 1
CONTROLS: dict[str, Callable[[Task, Any, Any], Hook]] = {  # of a task, a processor, a config
    "tokens elsewhere": lambda *_: interventions.permuted_tokens(_HOOK_SEED),
    "other heads": lambda *_: interventions.random_heads(_HOOK_SEED),
    "whole image": lambda *_: interventions.all_image_tokens(),
    "true region": lambda task, processor, config: interventions.true_region(
        task.boxes, task.sizes, processor, config
    ),
}
MASKS: dict[str, Callable[[], Hook | None]] = {
    "visual heads": lambda: None,
    "as many others": lambda: interventions.random_heads(_HOOK_SEED),
    "as many of lowest R": interventions.lowest_ratio_heads,
}
LAYER_MASKS: dict[str, Policy] = {  # the paper's study: k heads of every layer
    "per layer, lowest EFR": "efr",
    "per layer, random": "random",
    "per layer, lowest R": "lowest_ratio",
}
LAYER_SHARE = 5 / 16  # of a layer's heads, as in the paper: 5 of 16, 10 of 32


@dataclass(frozen=True)
class Study:
    """Every condition's outcome for one model.

    Attributes
    ----------
    name : str
        What the model is called in tables and figures.
    parameters : int
        Number of the model's parameters.
    task : Task
        The questions.
    plain : dict of str to Run
        Without VRGA, by mode.
    guided : dict of str to Run
        With VRGA, by mode.
    gammas : dict of float to Run
        With VRGA in the long mode, by ``gamma``.
    controls : dict of str to Run
        With one of ``CONTROLS`` in the long mode, by its name.
    masks : dict of str to Run
        With the picture hidden by one of ``MASKS`` or ``LAYER_MASKS`` in the short mode, by its
        name.
    """

    name: str
    parameters: int
    task: Task
    plain: dict[str, Run]
    guided: dict[str, Run]
    gammas: dict[float, Run]
    controls: dict[str, Run]
    masks: dict[str, Run]

    @property
    def short(self) -> str:
        return self.task.modes[0]

    @property
    def long(self) -> str:
        return self.task.long

    def by_seed(self, run: Run) -> dict[int, float]:
        """Mean score for each seed of the questions."""
        groups = self.task.groups
        return {int(seed): float(run.scores[groups == seed].mean()) for seed in np.unique(groups)}


def control_label(control: str) -> str:
    """The name of one of CONTROLS in tables and figures; the true region is a bound."""
    return control if control == "true region" else f"control: {control}"


def conditions(task: Task) -> int:
    """How many times :func:`study` asks every question."""
    return 2 * len(task.modes) + len(task.gammas) + len(CONTROLS) + len(MASKS) + len(LAYER_MASKS)


def study(
    name: str, model: Any, processor: Any, task: Task, step: Callable[[str, int], None]
) -> Study:
    """Measure one model.

    Parameters
    ----------
    name
        What the model is called in tables and figures.
    model, processor
        The model and its processor.
    task
        The questions.
    step
        Called after each batch with the condition and its number of questions.

    Returns
    -------
    Study
    """
    boost, short, long = task.config, task.modes[0], task.long
    nothing, hide = boost.replace(gamma=0.0), boost.replace(gamma=0.0, suppress=0.0)

    def run(
        what: str, mode: str, config: VRGAConfig, hook: Hook | None = None, attention: bool = False
    ) -> Run:
        title = f"{name}: {mode}, {what}"
        step(title, 0)
        return measure(
            model,
            processor,
            task,
            mode,
            config,
            hook=hook,
            attention=attention,
            advance=lambda count: step(title, count),
        )

    plain = {m: run("without VRGA", m, nothing, attention=True) for m in task.modes}
    hidden_from = {mask: make() for mask, make in MASKS.items()}
    for mask, policy in LAYER_MASKS.items():
        heads = _heads_of_layers(plain[short].attention, policy)
        hidden_from[mask] = interventions.these_heads(heads)
    return Study(
        name,
        sum(parameter.numel() for parameter in model.parameters()),
        task,
        plain=plain,
        guided={m: run("with VRGA", m, boost, attention=True) for m in task.modes},
        gammas={g: run(f"gamma {g:g}", long, boost.replace(gamma=g)) for g in task.gammas},
        controls={
            which: run(f"VRGA, {which}", long, boost, make(task, processor, model.config))
            for which, make in CONTROLS.items()
        },
        masks={
            which: run(f"hidden from {which}", short, hide, blinded(hook))
            for which, hook in hidden_from.items()
        },
    )


def _heads_of_layers(attention: ImageAttention, policy: Policy) -> tuple[HeadIndex, ...]:
    """The paper's choice, from each head's mean statistics over the questions."""
    ratio = torch.from_numpy(np.nanmean(attention.image_ratio, 0)).double()
    entropy = torch.from_numpy(np.nanmean(attention.image_entropy, 0)).double()
    efr = RowStatistics.from_ratio(ratio, entropy).efr
    count = max(1, int(LAYER_SHARE * ratio.shape[1]))
    return heads_by_policy(ratio, efr, attention.layers, policy, count, seed=_HOOK_SEED)
