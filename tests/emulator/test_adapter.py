"""``enable(model)`` through the CUDA kernels: recordings, an eager loop, the reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import vrga_ext
from tests.adapter.call.test_speculative import (  # noqa: F401
    test_assisted_decoding_equals_the_greedy_loop,
    test_drafts_in_the_first_forward_call,
)
from tests.adapter.conftest import *  # noqa: F403
from tests.adapter.families import build, greedy, logits
from tests.adapter.sequence.test_prompt import (  # noqa: F401
    test_forms_of_calling_generate,
    test_masked_image_is_no_image,
    test_positional_arguments_of_forward,
    test_row_of_padding_alone,
    test_row_without_an_image_is_plain,
)
from tests.adapter.test_generation import *  # noqa: F403
from tests.adapter.test_oracle import *  # noqa: F403
from tests.emulator.conftest import route_to
from vrga_ext import ops

pytestmark = pytest.mark.slow  # whole models, a lane at a time

PROMPT = ([5, 6, (4, 4), 7, 8, 9, 10], [11, (4, 4), 12, 13, 14])
LOOSE = {"gamma": 4.0, "efr_percentile": 40, "ratio_percentile": 60, "focus_min_tokens": 2}


@pytest.fixture(autouse=True, scope="module")
def emulated_module(emulator_library: str) -> Iterator[list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        yield route_to("vrga_emulated", patch)


@pytest.mark.parametrize(
    ("dtype", "heads"), [(torch.float32, 4), (torch.bfloat16, 4), (torch.float16, 16)]
)
def test_tokens_of_the_reference(dtype, heads, emulated_module, monkeypatch):
    """Head dim 64: tensor cores in 16 bits, with groups of 2 and 8."""
    family = build("llava", head_dim=64, num_attention_heads=heads, num_key_value_heads=2)
    model = family.model.to(dtype)
    inputs = family.prompt(*PROMPT)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)

    before = len(emulated_module)
    with vrga_ext.enable(model, vrga_ext.VRGAConfig(**LOOSE)):
        through_kernels = greedy(model, inputs)
    assert len(emulated_module) > before
    monkeypatch.setattr(ops, "has_kernel", lambda *_: False)  # what follows runs on the reference
    before = len(emulated_module)
    with vrga_ext.enable(model, vrga_ext.VRGAConfig(**LOOSE)):
        through_reference = greedy(model, inputs)
    assert len(emulated_module) == before
    plain = greedy(model, inputs)

    assert torch.equal(through_kernels.sequences, through_reference.sequences)
    ours, theirs = logits(through_kernels).float(), logits(through_reference).float()
    scale = theirs.abs().max()
    assert (ours - theirs).abs().max() < scale * 8 * torch.finfo(dtype).eps
    assert not torch.equal(theirs, logits(plain).float())
