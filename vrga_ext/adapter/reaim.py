"""Re-aiming: T_q chosen anew while the answer is written, from the same heads as at the question.

Beyond the paper, and off by default. A recorder follows the visual heads' entropy, which the gated
layers compute anyway; in a step in which a sample is due it reads the heads' image rows and, once
the step is over, aims the steps after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vrga_ext import selection
from vrga_ext.adapter.prompt import Prompt
from vrga_ext.adapter.recorder import Call, Counts, LayerRow, Want, Watch
from vrga_ext.adapter.regions import stack_on_cpu
from vrga_ext.region import HeadIndex, Region

Publish = Callable[[Prompt, list[Region]], None]


class ReAim:
    """Recorder that refreshes the T_q of sequences whose configuration asks for it.

    Parameters
    ----------
    publish
        Called with a prompt and its regions after they were replaced.
    """

    def __init__(self, publish: Publish) -> None:
        self._publish = publish

    def watch(self, call: Call) -> Watch | None:
        """A watch over a decode step in which T_q is chosen, or the heads' entropy followed."""
        state, config = call.state, call.state.config
        looking = [i for i, region in enumerate(state.regions) if region.visual_heads]
        if not state.decoding or not looking:
            return None
        old = [i for i in looking if 0 < config.reaim_every <= call.past - state.aimed_at[i]]
        due = state.drifting.union(old)
        follow = set(looking) - due if config.reaim_entropy else set()
        return _Step(call, due, follow, self._publish) if due or follow else None


class _Step:
    """One decode step: ``due`` samples are aimed by it, ``follow`` may be due in the next one.

    The query row is the first of the step; tokens after it may be drafts that are thrown away.
    """

    def __init__(self, call: Call, due: set[int], follow: set[int], publish: Publish) -> None:
        self.columns: Sequence[Sequence[int]] = [[call.past] * call.state.image.shape[0]]
        self._state, self._past = call.state, call.past
        self._due, self._follow, self._publish = due, follow, publish
        regions = call.state.regions
        aiming = [head for i in due for head in regions[i].visual_heads]
        aiming += [head for i in due for head in regions[i].background_heads]
        self._image = set(dict(aiming))
        self._statistics = set(dict(head for i in follow for head in regions[i].visual_heads))
        self._rows: dict[int, LayerRow] = {}

    def wants(self, layer: int) -> Want:
        if layer in self._image:
            return "image"
        return "statistics" if layer in self._statistics else "nothing"

    def record(self, layer: int, index: int, row: LayerRow) -> None:
        self._rows[layer] = row

    def end(self, counts: list[Counts]) -> None:
        state = self._state
        entropy = self._entropies()
        for sample in self._follow:
            if entropy[sample] > state.config.reaim_entropy * state.aim_entropy[sample]:
                state.drifting.add(sample)
        if not self._due:
            return
        regions = list(state.regions)
        for sample in self._due:
            regions[sample] = self._aimed(sample, regions[sample])
            state.aim_entropy[sample] = entropy[sample]
            state.aimed_at[sample] = self._past
        state.drifting -= self._due
        state.aim(regions, regions[0].layers, regions[0].image_ratio.shape[1])
        self._publish(state.prompt, regions)

    def _of(self, sample: int, tensor: Tensor) -> Tensor:
        """Mean over the rows of a sample, whose beams may have changed places."""
        copies = tensor.shape[0] // len(self._state.regions)
        return tensor[sample * copies : (sample + 1) * copies].mean(0)

    def _entropies(self) -> dict[int, float]:
        """Mean H_img of every sample's visual heads in this step, nats."""
        order = {layer: index for index, layer in enumerate(self._rows)}
        rows = [row.statistics.image_entropy for row in self._rows.values()]
        by_row = stack_on_cpu(rows).transpose(0, 1)  # [B, L, H]; the step's one read for them
        means = {}
        for sample in self._follow | self._due:
            of_sample = self._of(sample, by_row)
            heads = self._state.regions[sample].visual_heads
            values = [of_sample[order[layer], head] for layer, head in heads]
            means[sample] = float(torch.stack(values).mean())
        return means

    def _aimed(self, sample: int, region: Region) -> Region:
        """The region with its map and tokens as this step shows them."""
        attention = {}
        for layer, row in self._rows.items():
            if row.attention is not None:
                rows = self._of(sample, row.attention).cpu()
                attention[layer] = rows[:, region.image_positions]

        def maps(heads: Sequence[HeadIndex]) -> Tensor:
            found = [attention[layer][head] for layer, head in heads]
            return torch.stack(found) if found else torch.empty(0, len(region.image_positions))

        config, spans = self._state.config, list(region.images)
        refined = selection.refined_map(
            maps(region.visual_heads), maps(region.background_heads), config.background_weight
        )
        focus, suppressed = selection.focus_tokens(refined, spans, config)
        boosted = selection.widen_tokens(focus, suppressed, spans, config)
        return replace(
            region,
            aimed_at=self._past,
            refined_map=refined,
            focus=region.image_positions[focus],
            boosted=region.image_positions[boosted],
        )
