"""``capture``: records every head's attention on the image, in every way of generating."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor

from vrga_ext.captures import Capture
from vrga_ext.config import VRGAConfig
from vrga_ext.integrations.transformers.api import enable, handle_of, unwrapped
from vrga_ext.integrations.transformers.observe.recorder import CaptureRecorder, Want
from vrga_ext.integrations.transformers.observe.session import PromptRows, check_prompt_rows
from vrga_ext.model_identity import ModelIdentity

_WANTS: dict[Any, Want] = {False: "statistics", True: "image", "all": "keys"}


class Recording:
    """What :func:`vrga_ext.capture` has recorded so far: one :class:`Capture` per prompt.

    A prompt is a call of ``generate``, or of the model in a loop over ``model(...)``; several turns
    on one KV cache are several prompts. Prompts without an image are left out.
    Attention rows are kept once: do not write into those of a capture while the recording goes on.
    """

    def __init__(self, noticed: Iterable[str], recorder: CaptureRecorder) -> None:
        self._noticed = noticed  # by the handle, and not the handle, which would keep the model
        self._recorder = recorder

    @property
    def captures(self) -> tuple[Capture, ...]:
        """Every prompt's, in the order in which they were read."""
        return tuple(session.build() for session in self._recorder.sessions if session.seen)

    @property
    def last(self) -> Capture:
        """The last prompt's.

        Raises
        ------
        ValueError
            No prompt with an image has been read; says why, where it is known.
        """
        for session in reversed(self._recorder.sessions):
            if session.seen:
                return session.build()
        why = "; ".join(self._noticed) or "the model was not called, or paused"
        raise ValueError(f"capture: wanted a prompt with an image, got none ({why})")


@contextmanager
def capture(
    model: Any,
    *,
    prompt_rows: PromptRows = "question",
    rows: bool | Literal["all"] = False,
    processor: Any = None,
    question_end: str | int | Sequence[int] | Tensor = "auto",
    image_token_id: int | Sequence[int] | Tensor | None = None,
) -> Iterator[Recording]:
    """Record attention statistics of a model, with VRGA or without, while it answers.

    Per layer and head, at chosen rows of the prompt and at every generated token: ``R_img``,
    ``H_img``, ``H_joint``, the gate, and on request the attention row itself. No weight of size
    queries x keys is stored: beside the model's own attention one query row is computed per token
    and layer. Outputs are therefore bit for bit those of the model without a capture, with VRGA or
    without; without it, VRGA is installed with gamma 0 for as long as the block lasts.

    Parameters
    ----------
    model
        A multimodal model of transformers, in which VRGA is enabled or not.
    prompt_rows
        Rows of the prompt: ``"question"``, the question's last token; an index, or several, the
        same for every sample of the prompt; or a list of them for each. Indices are absolute: left
        padding and what is in the cache count. An empty list asks for none.
    rows
        Also keep the attention row: ``True`` on the image tokens, ``"all"`` on every key.
        ``samples x layers x heads x rows x keys`` floats, on the CPU.
    processor, question_end, image_token_id
        As in :func:`vrga_ext.enable`. Where VRGA is enabled already they are not needed, and may
        only repeat what it was enabled with.

    Yields
    ------
    Recording
        ``recording.last`` and ``recording.captures``, inside the block and after it.

    Raises
    ------
    TypeError
        ``model`` is not a transformers model, or an argument has the wrong type.
    ValueError
        The model is not multimodal or cannot be served; captures are nested; VRGA is enabled with
        another ``processor``, ``question_end`` or ``image_token_id``. While the model runs:
        ``prompt_rows`` does not fit the prompt.

    Notes
    -----
    A forward call under ``torch.compile`` that was compiled before the capture is not recorded;
    one compiled inside it breaks its graph in every layer.

    Examples
    --------
    >>> import vrga_ext
    >>> from vrga_ext.demo.answers import held_out, load_demo, prepare
    >>> model, processor = load_demo()
    >>> samples = held_out(1, seed=0)
    >>> inputs = prepare(processor, samples, steps=0)
    >>> with vrga_ext.capture(model, processor=processor) as recording:
    ...     tokens = model.generate(**inputs, max_new_tokens=4)
    >>> recording.last.image_ratio.shape  # sample, layer, head, question and generated tokens
    torch.Size([1, 4, 8, 4])
    """
    if not any(rows is known for known in (False, True)) and rows != "all":
        raise ValueError(f"rows: wanted False, True or 'all', got {rows!r}")
    wanted = check_prompt_rows(prompt_rows)
    handle = handle_of(unwrapped(model))
    owned = handle is None
    if handle is None:
        config = VRGAConfig(gamma=0.0)
        handle = enable(
            model,
            config,
            processor=processor,
            question_end=question_end,
            image_token_id=image_token_id,
        )
    else:
        handle.check_same_prompts(processor, question_end, image_token_id)
    try:
        identity = ModelIdentity.from_config(unwrapped(model).config)
        recorder = CaptureRecorder(wanted, _WANTS[rows], identity)
        with handle.recording(recorder):
            yield Recording(handle._runtime.noticed, recorder)
    finally:
        if owned:
            handle.disable()
