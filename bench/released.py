"""VRGA in a whole model the way the released code works: eager attention, every weight kept."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from bench.loop import boost_rows, read_rows
from bench.models import IMAGE

_names = itertools.count()


class ReleasedWay:
    """Switches a model's attention; from then on its prompts are analysed and its answers boosted.

    The attention weights of all layers of a prompt are kept until its answer is complete, as
    ``output_attentions`` does, so that they take ``layers * heads * prompt**2`` values.
    """

    def __init__(self, model: Any, question_end: int) -> None:
        config = model.config.get_text_config(decoder=True)
        self._layers: int = config.num_hidden_layers
        self._question_end = question_end
        self.kept: list[Tensor] = []  # one [B, Hq, S, S] per layer
        self._image: list[Tensor] = []  # positions of the image tokens, per row
        self._focus: list[Tensor] = []
        name = f"released_way_{next(_names)}"
        AttentionInterface.register(name, self._attention)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
        model.set_attn_implementation({"text_config": name})
        model.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"]
        if ids.shape[1] > 1:
            self.kept, self._focus = [], []
            self._image = [(row == IMAGE).nonzero()[:, 0] for row in ids]

    def _attention(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        group = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(group, 1).mT
        scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if attention_mask is not None:
            scores = scores + attention_mask
        a = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
        if query.shape[2] > 1:
            self.kept.append(a)
            if len(self.kept) == self._layers:
                self._choose_tokens()
        else:
            for row, image in enumerate(self._image):
                boost_rows(a[row], image, self._focus[row])
        output = a @ value.repeat_interleave(group, 1)
        return output.transpose(1, 2).contiguous(), a

    def _choose_tokens(self) -> None:
        """The tenth of the image that the heads of the lowest entropy-focus ratio look at most."""
        for row, image in enumerate(self._image):
            heads = []
            for layer, a in enumerate(self.kept):
                rows = a[row, :, self._question_end].float()
                quotients = [values[2] for values in read_rows(rows, image)]
                heads += [(quotient, layer, head) for head, quotient in enumerate(quotients)]
            best = sorted(heads)[: max(1, len(heads) // 20)]
            maps = [self.kept[lay][row, head, self._question_end, image] for _, lay, head in best]
            refined = torch.stack(maps).float().mean(0)
            self._focus.append(image[refined.topk(max(1, len(image) // 10)).indices])
