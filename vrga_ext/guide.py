"""``Guide``: where a model should look, said by hand for one answer."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import numpy as np

from vrga_ext.config import VRGAConfig

_PLACES = ("boxes", "points", "masks", "tokens")


@dataclass(frozen=True, eq=False)  # masks do not compare to one truth
class Guide:
    r"""Where a model should look while it writes one answer.

    A guide takes the place of the region that VRGA selects. Its tokens are boosted as they are:
    they are not widened, not suppressed at the border and not filled up. Whatever a guide leaves
    out stays as VRGA does it: without a place the tokens are selected, without ``heads`` the heads.

    Places are in pixels of the picture as the model saw it: turned upright if it was loaded from a
    path or a URL, as stored if it was given as a PIL picture. Several kinds of places are joined.
    They count the pictures that come with the call, in the order of the prompt.

    Attributes
    ----------
    boxes : tuple of tuples of (x0, y0, x1, y1), optional
        Boxes of each picture (pixels). A list of boxes is of the only picture; for several
        pictures pass one such list per picture.
    points : tuple of tuples of (x, y), optional
        Points of each picture (pixels), in the same two forms. A point is of the token whose
        rectangle holds it.
    masks : tuple of bool [height, width], optional
        Pixels of each picture. A mask carries its picture's size; None stands for a picture
        without a mask.
    tokens : tuple of int, optional
        Positions of image tokens in the prompt, left padding included.
    image_sizes : tuple of (width, height)
        Of each picture (pixels). Boxes and points need it; nothing is guessed from a grid.
    gamma : float, optional
        Boost of the region in gated heads (no unit); None: as the configuration has it.
    suppress : float, optional
        Weight of the other image tokens in gated heads, ``[0, 1]``; None: as the configuration has
        it.
    heads : tuple of (layer, head), optional
        Heads that are gated, the layer as the model counts it; also a
        :class:`vrga_ext.analysis.HeadProfile`. None: the selected visual heads. With the dynamic
        gate those among them that pass it.
    schedule : tuple of (int, Guide or None)
        (t, guide): from generated token t on, counted from 0, the places of that guide hold, or
        with None none. Ascending. The pass over the prompt writes token 0 and is not guided.
    between : (int, int), optional
        Ids of a start and an end token, such as those of ``<think>`` and ``</think>``: the guide
        holds only after the first and before the second. The last of the two in the prompt tells
        whether the answer begins inside.
    min_coverage : float
        Share of a token's rectangle that has to lie in a box or mask, ``(0, 1]``. Where no token
        reaches it, the best one counts, of the whole picture and of its tiles separately.

    Raises
    ------
    ValueError
        A box is empty, unordered, not finite or outside its picture; sizes are missing or do not
        fit; a number is out of range. The message names the argument, what was wanted and got.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> guide = Guide(boxes=[(10, 20, 110, 90)], image_sizes=(640, 400), gamma=1.0)
    >>> guide.boxes
    (((10.0, 20.0, 110.0, 90.0),),)

    "Gaze Heads" (arXiv 2606.14703) adds b to the scores on a region and -b to those elsewhere:

    >>> b = 2.0
    >>> gaze = Guide(tokens=[4, 5], gamma=math.exp(b) - 1, suppress=math.exp(-b))

    Look at a box for 20 tokens, then let VRGA's heads alone:

    >>> timed = Guide(boxes=[(0, 0, 50, 50)], image_sizes=(100, 100), schedule=[(20, None)])
    >>> Guide(boxes=[(90, 0, 120, 50)], image_sizes=(100, 100))
    Traceback (most recent call last):
    ...
    ValueError: boxes: wanted boxes inside a picture of 100 x 100, got (90, 0, 120, 50)
    """

    boxes: Any = None
    points: Any = None
    masks: Any = None
    tokens: Any = None
    image_sizes: Any = ()
    gamma: float | None = None
    suppress: float | None = None
    heads: Any = None
    schedule: Any = ()
    between: Any = None
    min_coverage: float = 0.5

    def __post_init__(self) -> None:
        sizes = _sizes(self.image_sizes)
        masks = _masks(self.masks, sizes)
        pictures = len(sizes) or len(masks or ())
        boxes = _per_picture("boxes", self.boxes, 4, sizes)
        points = _per_picture("points", self.points, 2, sizes)
        if (boxes or points) and not sizes:
            name = "boxes" if boxes else "points"
            raise ValueError(
                f"image_sizes: wanted (width, height) per picture with {name}, got none"
            )
        for boxes_of, size in zip(boxes or (), sizes, strict=False):
            for box in boxes_of:
                _check_box(box, size)
        for points_of, size in zip(points or (), sizes, strict=False):
            for x, y in points_of:
                if not (0 <= x <= size[0] and 0 <= y <= size[1]):
                    _fail("points", f"points inside a picture of {_by(size)}", (x, y))
        if masks and not sizes:
            sizes = tuple((0, 0) if m is None else m.shape[::-1] for m in masks)
            if (0, 0) in sizes:
                _fail("image_sizes", "(width, height) per picture where one has no mask", "none")
        given: dict[str, Any] = {"image_sizes": sizes, "masks": masks}
        given |= {"boxes": boxes, "points": points, "tokens": _tokens(self.tokens)}
        given["heads"] = checked_heads(self.heads)
        given["between"] = _between(self.between)
        for name, places in (("boxes", boxes), ("points", points), ("masks", masks)):
            if places and len(places) != pictures:
                _fail(name, f"one list for each of {pictures} pictures", f"{len(places)}")
        config = VRGAConfig()
        for name in ("gamma", "suppress"):
            if getattr(self, name) is not None:  # its type and range are the configuration's
                given[name] = getattr(config.replace(**{name: getattr(self, name)}), name)
        coverage = self.min_coverage
        if isinstance(coverage, bool) or not isinstance(coverage, int | float):
            raise TypeError(f"min_coverage: wanted a number, got {coverage!r}")
        if not 0 < coverage <= 1:
            raise ValueError(f"min_coverage: wanted a number in (0, 1], got {coverage!r}")
        given["schedule"] = _schedule(self.schedule, sizes)
        for name, value in given.items():
            object.__setattr__(self, name, value)

    @property
    def has_places(self) -> bool:
        """Whether it says which tokens are boosted."""
        return any(getattr(self, name) is not None for name in _PLACES)

    @property
    def has_pixels(self) -> bool:
        """Whether it has places in pixels."""
        return any(getattr(self, name) is not None for name in _PLACES[:3])

    @classmethod
    def from_plain(cls, plain: Any) -> Guide:
        """A guide from a dictionary of plain JSON values, as a request carries it.

        Parameters
        ----------
        plain : dict
            Fields of a guide; a guide within ``schedule`` is a dictionary, too.

        Raises
        ------
        TypeError, ValueError
            It is not a dictionary, a field is unknown, or as the class.

        Examples
        --------
        >>> Guide.from_plain({"tokens": [3, 4], "schedule": [[8, None]]}).schedule
        ((8, None),)
        """
        if not isinstance(plain, dict):
            raise TypeError(f"guide: wanted a dictionary of fields of Guide, got {plain!r}")
        names = [field.name for field in fields(cls)]
        unknown = sorted(map(str, set(plain) - set(names)))
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: no such field of Guide; fields: {names}")
        schedule = plain.get("schedule", ())
        if isinstance(schedule, list | tuple):
            schedule = [
                (entry[0], cls.from_plain(entry[1]))
                if isinstance(entry, list | tuple)
                and len(entry) == 2
                and isinstance(entry[1], dict)
                else entry
                for entry in schedule
            ]
        return cls(**plain | {"schedule": schedule})

    def configured(self, config: VRGAConfig) -> VRGAConfig:
        """A configuration with the guide's gamma and suppress, where it has them."""
        own = {"gamma": self.gamma, "suppress": self.suppress}
        return config.replace(**{name: value for name, value in own.items() if value is not None})


def _fail(name: str, wanted: str, got: Any) -> NoReturn:
    raise ValueError(f"{name}: wanted {wanted}, got {got}")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _plain(value: Any) -> Any:
    """Lists in place of tensors and arrays."""
    return value.tolist() if hasattr(value, "tolist") else value


def _listed(name: str, value: Any, wanted: str) -> list[Any]:
    value = _plain(value)
    if value is None:
        return []
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: wanted {wanted}, got {value!r}")
    return [_plain(item) for item in value]


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: wanted numbers, got {value!r}")
    number = float(value)
    if not math.isfinite(number):
        _fail(name, "finite numbers", value)
    return number


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name}: wanted whole numbers, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: wanted whole numbers, got {value!r}") from None


def _sizes(value: Any) -> tuple[tuple[int, int], ...]:
    sizes = _listed("image_sizes", value, "(width, height), or one per picture")
    if len(sizes) == 2 and not isinstance(sizes[0], Iterable):
        sizes = [sizes]
    found = []
    for size in sizes:
        pair = _listed("image_sizes", size, "(width, height) of each picture")
        if len(pair) != 2:
            _fail("image_sizes", "(width, height) of each picture", size)
        width, height = (_whole("image_sizes", side) for side in pair)
        if width < 1 or height < 1:
            _fail("image_sizes", "a width and a height of at least 1 pixel", size)
        found.append((width, height))
    return tuple(found)


def _per_picture(
    name: str, value: Any, numbers: int, sizes: Sequence[tuple[int, int]]
) -> tuple[tuple[tuple[float, ...], ...], ...] | None:
    """Boxes or points of each picture, from those of one picture or a list of such lists."""
    kind = "(x0, y0, x1, y1)" if numbers == 4 else "(x, y)"
    wanted = f"a list of {kind}, or one such list per picture"
    if value is None:
        return None
    places = _listed(name, value, wanted)
    nested = [_listed(name, place, wanted) for place in places]
    flat = [bool(place) and not isinstance(place[0], Iterable) for place in nested]
    if any(flat):
        if not all(flat):
            _fail(name, wanted, value)
        if len(sizes) > 1:
            _fail(name, f"one list for each of {len(sizes)} pictures", "a list for one")
        nested = [nested]
    found = []
    for picture in nested:
        here = []
        for place in picture:
            listed = _listed(name, place, wanted)
            if len(listed) != numbers:
                _fail(name, wanted, place)
            here.append(tuple(_number(name, x) for x in listed))
        found.append(tuple(here))
    if not any(found):
        _fail(name, f"at least one {kind}", "none; leave it out for VRGA's own region")
    return tuple(found)


def _check_box(box: tuple[float, ...], size: tuple[int, int]) -> None:
    x0, y0, x1, y1 = box
    shown = f"({', '.join(f'{x:g}' for x in box)})"
    if not (x0 < x1 and y0 < y1):
        _fail("boxes", "x0 < x1 and y0 < y1", shown)
    if x0 < 0 or y0 < 0 or x1 > size[0] or y1 > size[1]:
        _fail("boxes", f"boxes inside a picture of {_by(size)}", shown)


def _masks(value: Any, sizes: Sequence[tuple[int, int]]) -> tuple[np.ndarray | None, ...] | None:
    if value is None:
        return None
    single = getattr(value, "ndim", 0) == 2 or (
        isinstance(value, list | tuple) and _is_plain_mask(value)
    )
    found: list[np.ndarray | None] = []
    for index, mask in enumerate([value] if single else value):
        if mask is None:
            found.append(None)
            continue
        array = np.asarray(mask.cpu() if hasattr(mask, "cpu") else mask)
        if array.ndim != 2 or array.dtype != np.bool_:
            got = f"{array.dtype} {list(array.shape)}"
            raise TypeError(f"masks: wanted bool [height, width] per picture, got {got}")
        if not array.any():
            _fail("masks", "at least one True in each mask", "none; pass None for that picture")
        if sizes and (index >= len(sizes) or array.shape != sizes[index][::-1]):
            size = sizes[index] if index < len(sizes) else "no picture"
            _fail("masks", f"the size of the picture ({size})", f"{array.shape[::-1]}")
        array = array.copy()
        array.setflags(write=False)
        found.append(array)
    if not any(mask is not None for mask in found):
        _fail("masks", "at least one mask", "none; leave it out for VRGA's own region")
    return tuple(found)


def _is_plain_mask(value: Sequence[Any]) -> bool:
    """Whether nested lists are one mask: rows of bools, rather than a mask per picture."""
    first = next((row for row in value if row is not None), None)
    return isinstance(first, list | tuple) and bool(first) and isinstance(first[0], bool)


def _tokens(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    found = tuple(
        _whole("tokens", t) for t in _listed("tokens", value, "positions of image tokens")
    )
    if not found:
        _fail("tokens", "at least one position", "none; leave it out for VRGA's own region")
    if min(found) < 0:
        _fail("tokens", "positions of at least 0", min(found))
    return tuple(sorted(set(found)))


def checked_heads(value: Any) -> Any:
    """(layer, head) pairs as a tuple; None, and a profile of heads, as they are."""
    if value is None or hasattr(value, "check_model"):
        return value
    pairs = []
    for pair in _listed("heads", value, "(layer, head) pairs"):
        both = _listed("heads", pair, "(layer, head) pairs")
        if len(both) != 2:
            _fail("heads", "(layer, head) pairs", pair)
        layer, head = (_whole("heads", index) for index in both)
        if layer < 0 or head < 0:
            _fail("heads", "indices of at least 0", (layer, head))
        pairs.append((layer, head))
    if not pairs:
        _fail("heads", "at least one (layer, head)", "none")
    if len(set(pairs)) < len(pairs):
        _fail("heads", "each (layer, head) once", pairs)
    return tuple(pairs)


def _between(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    ids = [_whole("between", token) for token in _listed("between", value, "two token ids")]
    if len(ids) != 2 or ids[0] == ids[1] or min(ids) < 0:
        _fail("between", "the ids of two different tokens", tuple(ids))
    return ids[0], ids[1]


def _schedule(
    value: Any, sizes: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, Guide | None], ...]:
    found: list[tuple[int, Guide | None]] = []
    for entry in _listed("schedule", value, "(generated token, Guide or None) pairs"):
        pair = _listed("schedule", entry, "(generated token, Guide or None) pairs")
        if len(pair) != 2:
            _fail("schedule", "(generated token, Guide or None) pairs", entry)
        start, guide = _whole("schedule", pair[0]), pair[1]
        if start < 0 or (found and start <= found[-1][0]):
            _fail("schedule", "ascending generated tokens of at least 0", start)
        if guide is not None:
            guide = _later(guide, sizes)
        found.append((start, guide))
    return tuple(found)


def _later(guide: Any, sizes: tuple[tuple[int, int], ...]) -> Guide:
    """A guide of a schedule: it has places, and nothing that the whole answer shares."""
    if not isinstance(guide, Guide):
        raise TypeError(f"schedule: wanted a Guide or None, got {guide!r}")
    shared = ("gamma", "suppress", "heads", "between")
    if any(getattr(guide, name) is not None for name in shared) or guide.schedule:
        _fail("schedule", f"guides without {', '.join(shared)} and schedule", guide)
    if not guide.has_places:
        _fail("schedule", "guides with boxes, points, masks or tokens", guide)
    if guide.has_pixels and sizes and guide.image_sizes != sizes:
        _fail("schedule", f"guides of the pictures {sizes}", guide.image_sizes)
    return guide
