"""Arguments of the demo, checked before the slow imports: torch, transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vrga_ext.demo.models import check_checkpoint
from vrga_ext.demo.outputs import check_apart, check_file
from vrga_ext.demo.pictures import DemoError, check_question, check_text, open_picture
from vrga_ext.guide import Guide

# A held-out picture, picked from those on which the boost changes the answer; the accuracies say
# how often that happens.
SAMPLE_IMAGE = Path(__file__).parent / "sample.png"
SAMPLE_QUESTION = "stepwise: what color is the solid square?"
SAMPLE_COLOR = "purple"


@dataclass(frozen=True)
class Request:
    """Checked arguments of :func:`vrga_ext.demo.run.run_demo`.

    Attributes
    ----------
    output : Path
        File of the drawing.
    html : Path, optional
        File of the page.
    samples : int
        Held-out questions for the accuracies.
    picture : PIL.Image.Image
        The picture as RGB.
    question : str
        What to ask.
    truth : str, optional
        The right colour; None unless picture and question are the demo's own.
    model_id : str, optional
        Folder or id of a checkpoint; None for the demo model.
    max_new_tokens : int
        Longest answer of a checkpoint (tokens).
    box : (x0, y0, x1, y1), optional
        Where the model should look (pixels of ``picture``).
    """

    output: Path
    html: Path | None
    samples: int
    picture: Image.Image
    question: str
    truth: str | None
    model_id: str | None
    max_new_tokens: int
    box: tuple[float, float, float, float] | None = None


def check_request(
    output: Path,
    samples: int,
    image: Path | None = None,
    question: str | None = None,
    model_id: str | None = None,
    html: Path | None = None,
    max_new_tokens: int = 256,
    box: str | None = None,
) -> Request:
    """Read the picture and check the other arguments.

    Raises
    ------
    DemoError
        An argument cannot be used.
    FileNotFoundError
        There is no such model.
    ImportError
        matplotlib is not installed.
    """
    from vrga_ext.viz import style

    if samples < 0:
        raise DemoError(f"samples: wanted at least 0, got {samples}")
    if max_new_tokens < 1:
        raise DemoError(f"max_new_tokens: wanted at least 1, got {max_new_tokens}")
    if image is not None and question is None:
        raise DemoError("question: wanted one to go with the picture, got none")
    if model_id is not None and image is None:
        raise DemoError("image: wanted a picture of yours for a checkpoint of yours, got none")
    kinds = style.Figure().canvas.get_supported_filetypes()
    check_file("output", output, [f".{kind}" for kind in kinds])
    outputs = [("output", output)]
    if html is not None:
        check_file("html", html)
        outputs.append(("html", html))
    check_apart(outputs, [("image", image or SAMPLE_IMAGE)])
    picture = open_picture(image or SAMPLE_IMAGE)
    text = check_text("question", SAMPLE_QUESTION if question is None else question)
    if model_id is None:
        text = check_question(text)
    else:
        check_checkpoint("model", model_id)
    truth = SAMPLE_COLOR if image is None and question is None else None
    place = None if box is None else _checked_box(box, picture)
    return Request(output, html, samples, picture, text, truth, model_id, max_new_tokens, place)


def _checked_box(box: str, picture: Image.Image) -> tuple[float, float, float, float]:
    """The box of a text ``x0,y0,x1,y1``, which lies in the picture."""
    try:
        x0, y0, x1, y1 = (float(number) for number in box.split(","))
    except ValueError:
        raise DemoError(f"box: wanted x0,y0,x1,y1 in pixels, got {box!r}") from None
    try:
        Guide(boxes=[(x0, y0, x1, y1)], image_sizes=picture.size)
    except ValueError as error:
        raise DemoError(str(error).replace("boxes:", "box:", 1)) from error
    return x0, y0, x1, y1
