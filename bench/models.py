"""Random Qwen2.5-VL models with real configurations, and prompts for them; no download."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

IMAGE, VISION_START, VISION_END = 10, 11, 12
_PATCH = 3 * 2 * 14 * 14  # values of one patch: channels, frames, height, width

# Text: hidden, intermediate, layers, heads, KV heads, vocabulary, tied embeddings.
_TEXT = {
    "tiny": (128, 128, 2, 4, 2, 512, True),
    "mid-size": (1024, 2816, 12, 16, 2, 32000, True),
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
}


@dataclass(frozen=True)
class ModelCase:
    """A model and a prompt of one or several images.

    Parameters
    ----------
    model
        ``"tiny"``, ``"mid-size"`` (12 layers, hidden 1024, 16/2 heads), or ``"3B"`` and ``"7B"``:
        the configurations of Qwen2.5-VL.
    prompt
        Tokens of a row.
    side
        An image has ``side * side`` tokens.
    images
        Images per row.
    compiled
        ``generate`` with a static cache, which transformers compiles on a GPU.
    """

    model: str
    prompt: int
    side: int = 32
    images: int = 1
    batch: int = 1
    dtype: str = "float32"
    compiled: bool = False

    def __str__(self) -> str:
        cache = ", static cache compiled" if self.compiled else ""
        tokens = self.images * self.side**2
        prompt = f"{self.prompt} tokens, {tokens} of images"
        return f"Qwen2.5-VL {self.model} {self.dtype}, B{self.batch}, {prompt}{cache}"

    @property
    def question_end(self) -> int:
        """Column of the question's last token; a template's tail follows."""
        return self.prompt - 6


@functools.lru_cache(maxsize=1)
def build(name: str, dtype: str, device: str) -> Any:
    """A random model; its attention is made peaked, so that heads differ."""
    hidden, intermediate, layers, heads, heads_kv, vocabulary, tied = _TEXT[name]
    small = name in ("tiny", "mid-size")
    vision = {"depth": 2, "hidden_size": 128, "intermediate_size": 256, "num_heads": 2}
    if not small:
        vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    dim = hidden // heads
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads_kv,
            "vocab_size": vocabulary,
            "max_position_embeddings": 65536,
            "tie_word_embeddings": tied,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [dim // 8, 3 * dim // 16, 3 * dim // 16],
                "rope_theta": 1e6,
            },
        },
        vision_config=vision
        | {
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [1] if small else [7, 15, 23, 31],
        },
        tie_word_embeddings=tied,
        image_token_id=IMAGE,
        video_token_id=13,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    for parameter_name, parameter in model.named_parameters():
        if "language_model" in parameter_name and (
            "q_proj" in parameter_name or "k_proj" in parameter_name
        ):
            parameter.data.mul_(2.0)
    model.generation_config.eos_token_id = None
    return model


def twin(model: Any) -> Any:
    """A model of its own on the same weights."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def make_prompt(case: ModelCase, device: str) -> dict[str, Tensor]:
    """Keyword arguments of ``generate``: text, the images, text."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = _TEXT[case.model][5]
    image = [VISION_START, *[IMAGE] * case.side**2, VISION_END] * case.images
    text = case.prompt - len(image)
    assert text >= 16, f"prompt: wanted at least {len(image) + 16} tokens, got {case.prompt}"
    lead = text // 4
    words = torch.randint(100, vocabulary, (case.batch, text), generator=generator)
    pictures = torch.tensor(image).expand(case.batch, -1)
    ids = torch.cat([words[:, :lead], pictures, words[:, lead:]], 1)
    grid = torch.tensor([[1, 2 * case.side, 2 * case.side]] * (case.images * case.batch))
    pixels = torch.randn(int(grid.prod(1).sum()), _PATCH, generator=generator)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "image_grid_thw": grid,
        "pixel_values": pixels.to(getattr(torch, case.dtype)),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def weights_kept_bytes(case: ModelCase) -> int:
    """Bytes of all attention weights of a prompt: layers x heads x prompt x prompt."""
    _, _, layers, heads, *_ = _TEXT[case.model]
    size: int = getattr(torch, case.dtype).itemsize
    return case.batch * layers * heads * case.prompt**2 * size


def free_bytes(device: str) -> int:
    """Memory that is left."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo: wanted a line MemAvailable, got none; Linux is needed")
