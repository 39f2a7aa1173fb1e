"""What VRGA selects for one sample: heads, refined map and question-relevant tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from vrga_ext.selection import Span

HeadIndex = tuple[int, int]  # (layer, head), the layer as the model counts it
Rule = Literal["given", "template", "last_token"]


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth
class Region:
    """Heads and image tokens that VRGA selected for one sample of a prompt (paper section 4).

    L is the number of full-attention layers, H that of query heads, n that of image tokens. A
    position is an index into the prompt as the model saw it, left padding included. All tensors
    are on the CPU.

    Attributes
    ----------
    question_end : int
        Position of the token whose attention was read: the question's last one.
    question_rule : {"given", "template", "last_token"}
        How it was found: by the caller, in the chat template, or as the prompt's last token.
    image_positions : int64 [n]
        Positions of the image tokens (V), ascending.
    images : tuple of Span
        One per image, or video frame; its indices are into ``image_positions``.
    layers : tuple of int
        The model's own index of each of the L full-attention layers.
    image_ratio : float64 [L, H]
        R_img, mean attention on image tokens over mean attention (no unit).
    image_entropy : float64 [L, H]
        H_img, entropy of the attention inside the image (nats).
    efr : float64 [L, H]
        Entropy-focus ratio ``H_img / R_img`` (nats); +inf for a head that does not see the image.
    visual_heads : tuple of (layer, head)
        H_v, the heads that look at the image with focus; or those that were given in their place.
        The layer as the model counts it.
    background_heads : tuple of (layer, head)
        H_b, the heads whose map is subtracted.
    refined_map : float64 [n]
        Attention of the visual heads on each image token, less that of the background heads; sum 1
        where there is a background head.
    focus : int64 [k]
        Positions of the question-relevant tokens (T_q) before widening.
    boosted : int64 [m]
        Positions of the tokens that are reweighted: T_q after widening.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import DEMO_CONFIG, generate, held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> inputs = prepare(processor, held_out(1, seed=7), steps=0)
    >>> with vrga_ext.enable(model, DEMO_CONFIG, processor=processor) as handle:
    ...     answer = generate(model, inputs, steps=0)
    >>> region = handle.regions[0]
    >>> region.question_rule, region.grid, region.refined_map.shape
    ('template', (6, 6), torch.Size([36]))
    """

    question_end: int
    question_rule: Rule
    image_positions: Tensor
    images: tuple[Span, ...]
    layers: tuple[int, ...]
    image_ratio: Tensor
    image_entropy: Tensor
    efr: Tensor
    visual_heads: tuple[HeadIndex, ...]
    background_heads: tuple[HeadIndex, ...]
    refined_map: Tensor
    focus: Tensor
    boosted: Tensor

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patch rows and columns of the only image; None if unknown, or for several images."""
        return self.images[0].grid if len(self.images) == 1 else None


class Regions(list[Region]):
    """One :class:`Region` per sample of the last prompt.

    An index past the end raises an IndexError that names what is missing.

    Examples
    --------
    >>> Regions()[0]  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    IndexError: regions: wanted a prompt that was read with VRGA, got none; call model.gener...
    """

    def __getitem__(self, index: Any) -> Any:
        try:
            return super().__getitem__(index)
        except IndexError:
            if self:
                why = f"an index below {len(self)}, one per sample of the last prompt, got {index}"
            else:
                why = (
                    "a prompt that was read with VRGA, got none; call model.generate(...) or "
                    "model(...) first, outside pause()"
                )
            raise IndexError(f"regions: wanted {why}") from None
