"""What several tests of the adapter check or build."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaModel

import vrga_ext
from tests.adapter.families import Family, build, greedy, logits
from vrga_ext import VRGAWarning


def assert_untouched(model) -> None:
    assert not {"generate", "generate_batch", "_vrga_handle"} & set(model.__dict__)
    for module in (model, model.base_model, model.get_decoder()):
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    if hasattr(model.config, "get_text_config"):
        assert model.config.get_text_config()._attn_implementation == "sdpa"


def notices(record) -> list[str]:
    return [str(w.message) for w in record if issubclass(w.category, VRGAWarning)]


def skip_unless_stock_equals_its_loop(model, inputs, how) -> None:
    """Some transformers releases cannot split a prompt with an image into chunks."""
    try:
        stock = logits(greedy(model, inputs, 8, **how))
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"this transformers release cannot do it without VRGA: {error}")
    if not torch.allclose(stock, logits(greedy(model, inputs, 8)), atol=1e-4):
        pytest.skip("this transformers release does not equal its own greedy loop")


END = 21  # the last token of ROW for a LLaVA


def llava_with(decoder: type[LlamaModel]) -> Family:
    """A LLaVA whose language model is another subclass of Llama."""
    family = build("llava")
    model = family.model
    torch.manual_seed(0)
    model.model.language_model = decoder(model.config.text_config).eval()
    return family


@contextlib.contextmanager
def noticed():
    """The notices given inside, in order."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        yield found
    found += notices(record)


# The prompt's last two tokens occur before, and what follows them there is drafted.
REPEATED = [5, 6, 7, 8, (4, 4), 9, 11, 5, 6]


LOOKUP = {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 2}


def assert_refused(model: Any, message: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        vrga_ext.enable(model)
    assert_untouched(model)
    assert torch.equal(torch.get_rng_state(), state)


class Guarded(LlamaModel):
    """Looks at its input, which a run without numbers cannot."""

    def forward(self, *args, **kwargs):
        given = (
            kwargs.get("input_ids") if "inputs_embeds" not in kwargs else kwargs["inputs_embeds"]
        )
        assert bool(given.isfinite().all())
        return super().forward(*args, **kwargs)


def stock_or_skip(model, inputs, new_tokens, how):
    """Generation without VRGA, where this transformers release can do it."""
    try:
        return greedy(model, inputs, new_tokens, **how)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"this transformers release cannot do it without VRGA: {error}")
