"""``python -m vrga_ext demo``: a picture, a question, two answers, and a drawing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from torch import Tensor

import vrga_ext
from vrga_ext import Capture, Guide, VRGAConfig
from vrga_ext.demo import answers, terminal
from vrga_ext.demo.answers import DEMO_CONFIG, ForcedSteps, held_out, load_demo, messages
from vrga_ext.demo.build import token
from vrga_ext.demo.figure import Figure, View, draw
from vrga_ext.demo.language import MODES
from vrga_ext.demo.pictures import DemoError, visible_part
from vrga_ext.demo.request import SAMPLE_IMAGE, SAMPLE_QUESTION, Request, check_request
from vrga_ext.region import Region
from vrga_ext.viz import head_maps, per_token, write_html

STEPS = 16  # of a long answer; the model was taught to read the picture in answers of up to 4
_HELD_OUT_SEED = 7
_BATCH = 32


@dataclass(frozen=True)
class Outcome:
    """What the demo found.

    Attributes
    ----------
    answer_without : str
        Answer without VRGA.
    answer_with : str
        Answer with VRGA.
    accuracy_without : float, optional
        Share of right answers to held-out questions without VRGA; None where it was not measured.
    accuracy_with : float, optional
        The same with VRGA.
    output : Path
        File of the drawing.
    """

    answer_without: str
    answer_with: str
    accuracy_without: float | None
    accuracy_with: float | None
    output: Path


@dataclass(frozen=True)
class _Run:
    """One answer, what VRGA found at the question, and the attention while it was written."""

    words: str
    tokens: tuple[str, ...]
    capture: Capture
    attention: np.ndarray  # [n], mean over the visual heads, share of all attention
    moment: str  # when it was read, in words

    @property
    def region(self) -> Region:
        return self.capture.region(0)


def run_demo(
    output: Path,
    samples: int,
    image: Path | None = None,
    question: str | None = None,
    model_id: str | None = None,
    html: Path | None = None,
    max_new_tokens: int = 256,
    box: str | None = None,
) -> Outcome:
    """Answer a question about a picture with and without VRGA, and draw where the model looked.

    Parameters
    ----------
    output
        File for the drawing; the suffix decides the format. Missing folders are made.
    samples
        Held-out questions for the accuracies, 0 for none. Demo model only.
    image
        A picture file; the demo's own without it. A picture of your own needs ``question``.
    question
        For the demo model in its few words; for a real checkpoint anything.
    model_id
        A checkpoint of the hub or a folder; only its safetensors are loaded, and no code. The demo
        model without it.
    html
        File for a page of the answer with VRGA, token by token; without it no page is written.
    max_new_tokens
        Longest answer of a real checkpoint.
    box
        Where the model should look, ``x0,y0,x1,y1`` in pixels of the picture, in place of what VRGA
        finds; no accuracies are measured then.

    Raises
    ------
    DemoError
        An argument cannot be used; nothing was loaded or written then.
    FileNotFoundError
        There is no such model; nothing was loaded or written then.
    """
    return carry_out(
        check_request(output, samples, image, question, model_id, html, max_new_tokens, box)
    )


def carry_out(request: Request) -> Outcome:
    """Do what :func:`run_demo` describes, with checked arguments."""
    console = terminal.console()
    picture, text = request.picture, request.question
    part = (0, 0, *picture.size)
    forced = None
    if request.model_id is not None:
        model, processor = load_checkpoint(request.model_id)
        part = visible_part(processor, picture.size)
        picture = picture.crop(part)  # what the maps lie over
        config = VRGAConfig()
    else:
        model, processor = load_demo()
        config = DEMO_CONFIG
        forced = STEPS if MODES[1] in text.lower() else 0

    def show(words: str, before: str = "") -> None:
        console.print(Text.assemble((before, "bold"), terminal.shown(words, console)))

    guide = None if request.box is None else _guide(request.box, part)
    show("", terminal.shown(text, console))
    accuracy: tuple[float, float] | None = None
    with one_thread() if request.model_id is None else nullcontext():
        runs = tuple(
            _answer(model, processor, picture, text, setting, forced, request.max_new_tokens, place)
            for setting, place in ((config.replace(gamma=0.0), None), (config, guide))
        )
        names = ("without VRGA", "with VRGA" if guide is None else "with the box")
        for name, run in zip(names, runs, strict=True):
            show(_shorten(run.words), f"{name}  ")
        if request.model_id is None and request.samples and guide is None:
            accuracy = _accuracies(model, processor, config, request.samples, console)
            show(
                f"accuracy over {request.samples} held-out questions, {STEPS} steps: "
                f"{accuracy[0]:.1%} without VRGA, {accuracy[1]:.1%} with"
            )
    figure = _figure(picture, text, runs, config, guide, accuracy, request.samples, request.truth)
    request.output.parent.mkdir(parents=True, exist_ok=True)
    draw(figure, request.output)
    show(f"picture written to {request.output}")
    if request.html is not None:
        guided = runs[1]
        request.html.parent.mkdir(parents=True, exist_ok=True)
        write_html(request.html, guided.capture, picture, guided.tokens, title=text)
        show(f"page written to {request.html}")
    before, after = accuracy or (None, None)
    return Outcome(runs[0].words, runs[1].words, before, after, request.output)


def _guide(box: tuple[float, ...], part: tuple[int, ...]) -> Guide:
    """The guide of a box of the picture, in the part of it that the model is given."""
    left, top, right, bottom = part
    x0, y0, x1, y1 = box
    inside = (max(x0, left), max(y0, top), min(x1, right), min(y1, bottom))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise DemoError(f"box: wanted one in {part}, which is what the model sees, got {box}")
    moved = (inside[0] - left, inside[1] - top, inside[2] - left, inside[3] - top)
    return Guide(boxes=[moved], image_sizes=(right - left, bottom - top))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: the demo model is too small to gain from several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def load_checkpoint(model_id: str) -> tuple[Any, Any]:
    """``(model, processor)`` of a checkpoint, on the GPU if there is one.

    Raises
    ------
    ValueError
        It holds something else than a model with its processor.
    OSError
        It, or the hub, cannot be read.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with answers.errors_of_loading(model_id):
        processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=False)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            model_id, dtype="auto", trust_remote_code=False, use_safetensors=True
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), processor


def _answer(
    model: Any,
    processor: Any,
    picture: Image.Image,
    text: str,
    config: VRGAConfig,
    forced: int | None,
    max_new_tokens: int,
    guide: Guide | None,
) -> _Run:
    """One greedy answer; ``forced`` is the number of steps, ``None`` for a real checkpoint."""
    inputs: Any = processor.apply_chat_template(
        messages(picture, text),
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    length = inputs["input_ids"].shape[1]
    if guide is not None:
        inputs = {**inputs, "vrga": guide}
    with (
        vrga_ext.enable(model, config, processor=processor) as handle,
        vrga_ext.capture(model, prompt_rows=[length - 1], rows=True) as recording,
    ):
        if forced is not None:
            written = answers.generate(model, inputs, forced)
        else:
            with torch.inference_mode():
                written = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)[
                    :, length:
                ]
        region = handle.regions[0] if handle.regions else None
    if region is None or not region.visual_heads:
        raise DemoError("image: no visual head was found for this picture and question")
    capture = recording.last
    attention, moment = _attention(capture, written[0], forced is not None)
    tokens = tuple(processor.tokenizer.decode([int(token)]) for token in written[0])
    words = processor.batch_decode(written, skip_special_tokens=True)[0].strip()
    return _Run(words, tokens, capture, attention, moment)


def _attention(capture: Capture, written: Tensor, at_color: bool) -> tuple[np.ndarray, str]:
    """Mean attention ``[n]`` of the visual heads on the image tokens, and when that was.

    For the demo model while it writes the colour, if it comes to that; else, and for a real
    checkpoint, the mean over the whole answer.
    """
    maps = per_token(head_maps(capture), capture, len(written))  # [T, n]
    moment = "averaged over the answer"
    place = answers.color_place(written) if at_color else None
    if place is not None:
        maps = maps[place : place + 1]
        steps = int((written[:place] == token(";")).sum())
        moment = "at the moment the model is about to write the color"
        moment += f", after {steps} written step{'s' * (steps > 1)}" if steps else ""
    return np.nanmean(maps, axis=0), moment


def _accuracies(
    model: Any, processor: Any, config: VRGAConfig, count: int, console: Console
) -> tuple[float, float]:
    """Accuracy without and with VRGA over the same held-out questions."""
    samples = held_out(count, _HELD_OUT_SEED)
    right = [0, 0]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("held-out questions, answered twice", total=count)
        for first in range(0, count, _BATCH):
            batch = samples[first : first + _BATCH]
            for which, setting in enumerate((None, config)):
                if setting is None:
                    found = list(answers.answer_all(model, processor, batch, STEPS))
                else:
                    with vrga_ext.enable(model, setting, processor=processor):
                        found = list(answers.answer_all(model, processor, batch, STEPS))
                right[which] += sum(a.is_right(s) for a, s in zip(found, batch, strict=True))
            progress.advance(task, len(batch))
    return right[0] / count, right[1] / count


def _figure(
    picture: Image.Image,
    text: str,
    runs: tuple[_Run, ...],
    config: VRGAConfig,
    guide: Guide | None,
    accuracy: tuple[float, float] | None,
    samples: int,
    truth: str | None,
) -> Figure:
    region = runs[1].region
    grid = region.grid
    if grid is None:
        raise DemoError(
            "model: wanted one image whose tokens form a rectangle, got "
            f"{len(region.image_positions)} image tokens that do not"
        )
    focus = torch.isin(region.image_positions, region.focus).numpy().reshape(grid)
    told = "VRGA" if guide is None else "the box"
    boosted = rf"Visual heads, with {told} ($\gamma$ = {config.gamma:g})"
    views = [
        View(
            title,
            _shorten(run.words),
            None if truth is None else run.words.split()[-1] == truth,
            run.attention.reshape(grid),
        )
        for title, run in zip(
            ("Visual heads, without VRGA", boosted),
            runs,
            strict=True,
        )
    ]
    moment = f"attention {runs[1].moment}"
    if runs[0].moment != runs[1].moment:
        moment = f"without VRGA attention {runs[0].moment}; with {told} {runs[1].moment}"
    notes = ["greedy decoding, the same picture and question"]
    if truth is not None and guide is None:
        notes = ["tiny model trained for this demo, a picture picked where the answer changes"]
    if accuracy is not None:
        notes.append(
            f"over {samples} held-out questions {accuracy[0]:.0%} right without VRGA, "
            f"{accuracy[1]:.0%} with"
        )
    footer = "; ".join(notes)
    heading, caption = "Question-relevant tokens found", "outlined: T$_q$, from"
    if guide is not None:
        heading, caption = "Tokens of the box", "outlined: boosted in"
    caption += f" {len(region.visual_heads)} visual heads"
    return Figure(picture, text, heading, caption, focus, (views[0], views[1]), moment, footer)


def _shorten(words: str, longest: int = 34) -> str:
    """The last clause of an answer, which holds the reply, cut to ``longest`` characters."""
    last = words.split(" ; ")[-1]
    if len(last) > longest:
        last = last[-longest:].split(" ", 1)[-1]
    return last if last == words else f"… {last}"


__all__ = [
    "SAMPLE_IMAGE",
    "SAMPLE_QUESTION",
    "DemoError",
    "ForcedSteps",
    "Outcome",
    "carry_out",
    "run_demo",
]
