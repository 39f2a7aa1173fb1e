"""What the attention function of a layer is told, and what it tells."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from vrga_ext.plan import LayerPlan


class LayerObserver(Protocol):
    """Takes what the layers of one forward call compute."""

    def record(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float | None,
        softcap: float,
        per_head: Tensor | None = None,
    ) -> None:
        """Take one layer with full attention.

        Parameters
        ----------
        layer
            The layer as the model counts it.
        query : [B, H, q, D]
        key : [B, Hkv, K, D]
        mask : broadcastable to [B, H, q, K], optional
            Without it the call is causal and unpadded.
        scale, softcap
            As in the operations.
        per_head : fp32 [B, H, q, 4], optional
            R_img, H_img, H_joint and the gate of a layer that was reweighted.
        """

    def skip(self, layer: int, why: str) -> None:
        """Leave a layer alone, for a reason."""


class CallObserver(LayerObserver, Protocol):
    """A layer observer that is told when the call is over."""

    def end(self) -> None:
        """Keep what the layers computed, and the selection if the call ended a prompt."""


class LayerContext(Protocol):
    """Travels as the keyword argument ``vrga`` from a hook on the decoder to its layers."""

    @property
    def observer(self) -> LayerObserver | None:
        """Takes what the layers compute; None where nothing is recorded."""

    def plan_of(self, layer: int) -> LayerPlan | None:
        """What a layer reweights; None where the model's own attention runs."""
