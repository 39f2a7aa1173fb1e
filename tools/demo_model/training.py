"""The training of the demo model, in two stages: see :mod:`tools.demo_model`, its command."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration

from tools.demo_model import head_drop
from tools.demo_model.batches import IGNORE, IMAGE_SLICE, Batch, CellBank, sample_batch
from tools.demo_model.recipe import Recipe, check_folders
from vrga_ext.demo.build import build_model, save, token
from vrga_ext.demo.scenes import COLORS, FILLS, GRID, KINDS, SHAPES


def train(
    recipe: Recipe, output: Path, start: Path | None = None, first: Path | None = None
) -> None:
    """Run both stages and save the model.

    Parameters
    ----------
    output
        Folder of the trained model.
    start
        Folder of a saved model to continue from.
    first
        Folder for the model as it is between the stages.

    Raises
    ------
    DemoError
        A folder cannot be written, or two of them are the same; training does not start.
    FileNotFoundError
        There is no model to continue from; training does not start.
    """
    check_folders(output, start, first)
    rng = np.random.default_rng(recipe.seed)
    model = build_model(recipe.seed)
    if start is not None:
        model.load_state_dict(
            Qwen2_5_VLForConditionalGeneration.from_pretrained(start).state_dict()
        )
    head_drop.register()
    model.set_attn_implementation({"text_config": head_drop.NAME})
    model.train()
    bank = CellBank(recipe.seed, recipe.renders)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    started = time.process_time()
    total = recipe.first_steps + recipe.second_steps
    with tqdm(total=total, unit="step") as progress:
        for step in range(total):
            second = step >= recipe.first_steps
            if first is not None and step == recipe.first_steps:
                save(model, first)
            for group in optimiser.param_groups:
                group["lr"] = _learning_rate(recipe, step)
            most = recipe.most_objects
            if step < recipe.ramp_steps:
                most = 3 + round((most - 3) * step / recipe.ramp_steps)
            blind = recipe.blind_share if step >= recipe.blind_from else 0.0
            short = sample_batch(
                rng,
                bank,
                recipe.batch,
                (2, most),
                recipe.short_steps,
                recipe.short_turns,
                question_color=True,
            )
            loss, report = _loss(model, short, recipe.align_weight, blind)
            if second:
                long = sample_batch(
                    rng,
                    bank,
                    recipe.long_batch,
                    recipe.long_objects,
                    recipe.long_steps,
                    recipe.long_turns,
                    loose_colors=recipe.long_colors,
                )
                extra, _ = _loss(model, long, 0.0, blind)
                loss = (1 - recipe.long_weight) * loss + recipe.long_weight * extra
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            progress.update()
            if step % 10 == 0:
                progress.set_postfix(loss=f"{float(loss):.3f}", **report)
    model.eval()
    model.set_attn_implementation({"text_config": "sdpa"})
    save(model, output)
    print(f"trained in {(time.process_time() - started) / 60:.1f} CPU minutes, saved to {output}")


def _learning_rate(recipe: Recipe, step: int) -> float:
    """Warm-up, then cosine decay to a tenth; the second stage decays linearly to zero."""
    if step < recipe.first_steps:
        warm = min(1.0, (step + 1) / 50)
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.first_steps))
        return recipe.learning_rate * warm * (0.1 + 0.9 * cosine)
    left = recipe.first_steps + recipe.second_steps - step
    return recipe.second_learning_rate * left / recipe.second_steps


def _loss(
    model: Qwen2_5_VLForConditionalGeneration,
    batch: Batch,
    align_weight: float,
    blind_share: float,
) -> tuple[torch.Tensor, dict[str, str]]:
    """Next-word loss on the answers, and the alignment of cell features with their words."""
    grid = torch.tensor([[1, 2, 2 * len(batch.palette)]])
    features = model.model.visual(batch.patches, grid_thw=grid).pooler_output  # [P, E]
    hidden = _decode(model, batch, features, blind_share)[:, :-1]
    wanted = batch.labels[:, 1:]
    learnt = wanted != IGNORE
    log_probs = model.lm_head(hidden[learnt]).log_softmax(-1)  # [L, vocabulary]
    wanted, loose = wanted[learnt], batch.loose[:, 1:][learnt]
    accepted = batch.accepted[:, None].expand(-1, learnt.shape[1], -1)[learnt]  # [L, colours]
    color_ids = torch.tensor([token(color) for color in COLORS])
    exact = log_probs.gather(-1, wanted[:, None])[:, 0]
    colors = log_probs[:, color_ids].masked_fill(~accepted, -torch.inf).logsumexp(-1)
    loss = -torch.where(loose, colors, exact).mean()
    is_color = torch.isin(wanted, color_ids) & ~loose
    right = (log_probs.argmax(-1) == wanted)[is_color].float().mean()
    if align_weight > 0:
        loss = loss + align_weight * _alignment(model, batch, features)
    return loss, {"color": f"{float(right):.3f}"}


def _decode(
    model: Qwen2_5_VLForConditionalGeneration,
    batch: Batch,
    features: torch.Tensor,
    blind_share: float,
) -> torch.Tensor:
    """Last hidden states ``[B, S, E]``, positions counted as Qwen2.5-VL does."""
    embeds = model.get_input_embeddings()(batch.input_ids)
    embeds = torch.cat(
        [
            embeds[:, : IMAGE_SLICE.start],
            features[batch.cells],
            embeds[:, IMAGE_SLICE.stop :],
        ],
        dim=1,
    )
    positions = position_ids(batch.input_ids.shape[1])[:, None].expand(-1, len(embeds), -1)
    config = model.config.get_text_config()
    blind = head_drop.draw(
        config.num_hidden_layers, len(embeds), config.num_attention_heads, blind_share
    )
    return model.model.language_model(
        inputs_embeds=embeds, position_ids=positions, use_cache=False, blind_heads=blind
    ).last_hidden_state


def position_ids(length: int) -> torch.Tensor:
    """M-RoPE positions ``[3, length]`` of a prompt that starts with :data:`batches.PREFIX`."""
    start = IMAGE_SLICE.start
    cell = torch.arange(GRID**2)
    image = torch.stack([torch.zeros_like(cell), cell // GRID, cell % GRID]) + start
    before = torch.arange(start).expand(3, -1)
    after = torch.arange(length - IMAGE_SLICE.stop).expand(3, -1) + start + GRID
    return torch.cat([before, image, after], dim=1)


def _alignment(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch, features: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of each drawn cell against the words for its fill, shape and colour."""
    words = cast(torch.Tensor, model.get_input_embeddings().weight)
    normed = F.rms_norm(features[:-1], features.shape[-1:])  # the last cell is empty
    template = batch.palette[:-1]
    kind, color = template // len(COLORS), template % len(COLORS)
    shape = torch.tensor([SHAPES.index(k.shape) for k in KINDS])[kind]
    fill = torch.tensor([FILLS.index(k.fill) for k in KINDS])[kind]
    loss = features.new_zeros(())
    for names, wanted in ((FILLS, fill), (SHAPES, shape), (tuple(COLORS), color)):
        ids = torch.tensor([token(name) for name in names])
        loss = loss + F.cross_entropy(normed @ words[ids].T, wanted)
    return loss
