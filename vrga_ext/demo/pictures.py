"""Read and check pictures and questions of users."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from vrga_ext.demo.language import MODES, WORDS, unknown_words
from vrga_ext.demo.scenes import COLORS, FILLS, SHAPES
from vrga_ext.viz.grid import as_rgb

MAX_PIXELS = 64_000_000  # larger than any camera's picture a model would be shown
MAX_BYTES = 200_000_000
MAX_ASPECT = 50  # the image processors refuse 200; slivers carry nothing to look at


class DemoError(ValueError):
    """An argument of the user cannot be used; the message names it and what was wanted."""


def open_picture(path: Path) -> Image.Image:
    """Read a picture file as RGB, upright by its EXIF orientation.

    Raises
    ------
    DemoError
        The file is missing, not a picture, damaged, unreasonably large or thin, or its greys are
        not of 8 or 16 bits.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DemoError(f"image: there is no file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DemoError(f"image: wanted a picture file, got {str(path)!r} ({error})") from None
    if not S_ISREG(status.st_mode):
        raise DemoError(f"image: wanted a picture file, got {path}, which is not a file")
    if status.st_size > MAX_BYTES:
        raise DemoError(
            f"image: wanted at most {MAX_BYTES // 10**6} MB, got {status.st_size // 10**6} MB"
        )
    return decode_picture(path, str(path))


def decode_picture(source: Path | BytesIO, name: str) -> Image.Image:
    """Decode a picture, from a file that exists or from its content, as :func:`open_picture` does.

    Raises
    ------
    DemoError
        It is not a picture, damaged, unreasonably large or thin, or its greys are not of 8 or 16
        bits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked just below
            file = Image.open(source)
        width, height = file.size
        if width * height > MAX_PIXELS:
            raise DemoError(
                f"image: wanted at most {MAX_PIXELS:,} pixels, got {width} x {height} in {name}"
            )
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise DemoError(
                f"image: wanted sides within a factor of {MAX_ASPECT}, got {width} x {height}"
            )
        turned = ImageOps.exif_transpose(file)
        turned.load()
    except DemoError:
        raise
    except UnidentifiedImageError:
        raise DemoError(f"image: {name} is not a picture of a known format") from None
    except Image.DecompressionBombError:
        raise DemoError(
            f"image: wanted at most {MAX_PIXELS:,} pixels, got more in {name}"
        ) from None
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise DemoError(f"image: {name} is damaged and cannot be read ({error})") from None
    try:
        return as_rgb(turned)
    except ValueError as error:
        raise DemoError(f"{error} in {name}") from None


def visible_part(processor: Any, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of a picture that the model sees.

    All of it, or its central square where the image processor cuts that out.
    """
    width, height = size
    if not getattr(processor.image_processor, "do_center_crop", False):
        return 0, 0, width, height
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def check_text(argument: str, text: str) -> str:
    """Check a question's text, and strip it.

    Raises
    ------
    DemoError
        It is blank, or not valid Unicode: bytes of another encoding, half of a surrogate pair.
    """
    if not text.strip():
        raise DemoError(f"{argument}: wanted a question, got nothing")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DemoError(f"{argument}: wanted a text in Unicode, got {text!a}") from None
    return text.strip()


def check_question(question: str) -> str:
    """Check a question to the demo model, and prefix a mode of ``MODES`` if it has none.

    Raises
    ------
    DemoError
        It has words outside the demo model's vocabulary.
    """
    unknown = unknown_words(question)
    if unknown:
        raise DemoError(
            f"question: the demo model does not know {', '.join(map(repr, unknown))}. It knows "
            f"questions such as 'what color is the hollow star?', with {' or '.join(FILLS)}; "
            f"{', '.join(SHAPES)}; pictures with colors {', '.join(COLORS)}; and only the "
            f"words {' '.join(word for word in WORDS if word.isalpha())}. For other questions use "
            "a real checkpoint: --model ID"
        )
    words = question.lower().replace(":", " ").split()
    return question if any(mode in words for mode in MODES) else f"{MODES[1]}: {question}"
