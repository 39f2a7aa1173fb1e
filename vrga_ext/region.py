"""What was found for one sample: heads, refined map and question-relevant tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from vrga_ext.selection import Span

HeadIndex = tuple[int, int]  # (layer, head), the layer as the model counts it
Rule = Literal["given", "template", "last_token"]


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth
class Region:
    """Selection for one sample of the last prompt (paper section 4).

    Positions are columns of the prompt as the model saw it, left padding included. All tensors are
    on the CPU.
    """

    question_end: int  # prompt position whose attention row was read
    question_rule: Rule  # how it was found: "given", "template" or "last_token"
    image_positions: Tensor  # int64 [n], ascending; V
    images: tuple[Span, ...]  # one per image, indices into image_positions
    layers: tuple[int, ...]  # the model's full-attention layers, L of them
    image_ratio: Tensor  # fp64 [L, H], R_img
    image_entropy: Tensor  # fp64 [L, H], H_img in nats
    efr: Tensor  # fp64 [L, H], H_img / R_img
    visual_heads: tuple[HeadIndex, ...]  # H_v
    background_heads: tuple[HeadIndex, ...]  # H_b
    refined_map: Tensor  # fp64 [n]
    focus: Tensor  # int64, prompt positions of T_q before widening
    boosted: Tensor  # int64, prompt positions of T_q after widening

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patch rows and columns of the one image; None if unknown or if there are several."""
        return self.images[0].grid if len(self.images) == 1 else None


class Regions(list[Region]):
    """One :class:`Region` per sample of the last prompt.

    An index past the end says what is missing.

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
