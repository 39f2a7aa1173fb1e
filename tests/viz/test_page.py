"""The page of one generation: what it says, and what a browser shows of it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.viz.chromium import dom, needs_chromium, screenshot
from tests.viz.scenes import told
from vrga_ext import Capture
from vrga_ext.viz import cells, head_maps, html_page, per_token, write_html

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
TITLE = f"What is <b>there</b> & {{{{ 7 * 7 }}}} {HOSTILE}"


class Elements(HTMLParser):
    """Every element with its attributes, and the text of the buttons."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.buttons: list[str] = []
        self.title = ""
        self._into = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._into = tag
        if tag == "button":
            self.buttons.append("")

    def handle_endtag(self, tag: str) -> None:
        self._into = ""

    def handle_data(self, data: str) -> None:
        if self._into == "button":
            self.buttons[-1] += data
        elif self._into == "title":
            self.title += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def tokens():
    """The answer's tokens, two of which would do harm if they were not escaped."""
    return [HOSTILE, *told().tokens[1:-1], "a\nb"]


@pytest.fixture(scope="module")
def maps():
    """What the page has to show: attention of the visual heads [T, n] at each token."""
    scene = told()
    return per_token(head_maps(scene.capture), scene.capture, len(scene.tokens))


@pytest.fixture(scope="module")
def page(tokens, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    return write_html(path, told().capture, told().image, tokens, title=TITLE)


def extremes(maps: np.ndarray) -> tuple[int, int]:
    """Two tokens whose maps peak on different patches."""
    first = int(maps.max(1).argmax())
    others = [t for t in range(len(maps)) if maps[t].argmax() != maps[first].argmax()]
    return first, max(others, key=lambda t: maps[t].max())


def test_texts_are_escaped_and_nothing_comes_from_elsewhere(page, tokens):
    elements = Elements(page.read_text(encoding="utf-8"))
    assert elements.buttons == [*tokens[:-1], "a↵b"]
    assert elements.title == TITLE
    assert len(elements.all("script")) == 2
    assert len(elements.all("img")) == 1
    sources = [
        value
        for _, attributes in elements.found
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "poster", "srcset")
    ]
    assert [str(source)[:22] for source in sources] == ["data:image/png;base64,"]
    assert not elements.all("link")
    policy = next(a["content"] for a in elements.all("meta") if "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?://", page.read_text(encoding="utf-8"))


def test_rows_belong_to_the_tokens_written_from_them():
    scene = told()
    read = per_token(scene.capture.token_ids[0], scene.capture, len(scene.tokens))
    assert read[1:].tolist() == scene.answer[:-1].tolist()  # each token is written from the last
    positions = per_token(scene.capture.positions[0], scene.capture, len(scene.tokens))
    assert np.diff(positions).tolist() == [1] * (len(scene.tokens) - 1)
    without = scene.capture.generated
    assert np.isnan(per_token(without.positions[0], without, len(scene.tokens))[0])


def test_maps_are_the_mean_over_the_heads():
    capture = told().capture
    heads = [(0, 1), (2, 3)]
    expected = capture.image_rows(reweighted=False)[0, [0, 2], [1, 3]].mean(0)
    shown = head_maps(capture, heads=heads, reweighted=False)
    np.testing.assert_allclose(shown, expected.numpy(), rtol=1e-6)


def halves() -> Capture:
    """The scene's capture as if its rows of patches were two pictures."""
    capture = told().capture
    half = capture.images[0][0]._replace(length=18, grid=(3, 6))
    return replace(capture, images=((half, half._replace(start=18)),))


def test_several_pictures_and_a_region_of_ones_own():
    scene = told()
    picture = np.zeros((20, 30, 3), dtype=np.uint8)
    region = torch.zeros(36, dtype=torch.bool)
    region[20:22] = True
    text = html_page(
        halves(),
        [picture, Image.new("L", (4000, 2000))],
        scene.tokens,
        region=region,
        heads=[(1, 0)],
    )
    elements = Elements(text)
    assert [image["width"] for image in elements.all("img")] == ["30", "1024"]
    assert [(c["width"], c["height"]) for c in elements.all("canvas")] == [("6", "3")] * 2
    outlines = [path["d"] for path in elements.all("path")[:2]]
    assert outlines[0] == ""
    assert outlines[1] is not None
    assert outlines[1].count("M") == 6  # two patches side by side
    assert "the region given" in text


def test_without_a_region_nothing_is_outlined():
    scene = told()
    nothing = torch.zeros(36, dtype=torch.bool)
    text = html_page(scene.capture, scene.image, scene.tokens, region=nothing)
    elements = Elements(text)
    assert elements.all("path")[0]["d"] == ""
    assert "question-relevant" not in text
    assert '"region": null' in text
    strips = [a for a in elements.all("div") if a.get("class") == "strip"]
    assert len(strips) == 2  # no RRAR


def test_requests_that_do_not_fit_are_refused(tokens):
    scene = told()
    bare = scene.capture.select(slice(0, 1))
    with pytest.raises(ValueError, match="image: wanted 1 pictures, got 2"):
        html_page(scene.capture, [scene.image] * 2, tokens)
    with pytest.raises(ValueError, match="count: wanted 0 to 1 tokens"):
        html_page(bare, scene.image, tokens)
    with pytest.raises(ValueError, match=r"count: wanted 0 to 1 tokens.* got -1"):
        per_token(bare.positions[0], bare, -1)
    with pytest.raises(ValueError, match="sample: wanted one of 1 samples, got 3"):
        html_page(scene.capture, scene.image, tokens, sample=3)
    with pytest.raises(ValueError, match=r"got \(0, 99\)"):
        html_page(scene.capture, scene.image, tokens, heads=[(0, 99)])
    with pytest.raises(ValueError, match="heads: wanted at least one"):
        html_page(scene.capture, scene.image, tokens, heads=[])
    with pytest.raises(ValueError, match=r"region: wanted bool \[36\], got int64 \[2\]"):
        html_page(scene.capture, scene.image, tokens, region=torch.tensor([3, 4]))
    for wrong in ("picture.png", Path("picture.png"), torch.zeros(3, 8, 8), ["picture.png"]):
        with pytest.raises(TypeError, match="image: wanted a PIL image or an array, got "):
            html_page(scene.capture, wrong, tokens)
    with pytest.raises(ValueError, match="tokens: wanted at least one, got none"):
        html_page(scene.capture, scene.image, [])
    with pytest.raises(TypeError, match="tokens: wanted a list of texts, got int"):
        html_page(scene.capture, scene.image, scene.answer.tolist())
    with pytest.raises(TypeError, match="tokens: wanted a list of texts, got one text"):
        html_page(scene.capture, scene.image, "".join(tokens))


def test_arrays_are_as_good_as_tensors_and_lists(tokens):
    scene = told()
    region, heads = (np.arange(36) > 32)[::-1], np.array([[0, 1], [2, 3]])
    lists = {"region": torch.arange(36) < 3, "heads": [(0, 1), (2, 3)]}
    arrays = {"region": region, "heads": heads}
    pages = [html_page(scene.capture, scene.image, tokens, **each) for each in (lists, arrays)]
    assert pages[0] == pages[1]


def test_heads_are_called_what_they_are(tokens):
    scene = told()
    visual = html_page(scene.capture, scene.image, tokens)
    given = html_page(scene.capture, scene.image, tokens, heads=[(0, 1), (2, 3)])
    assert visual.count("the visual heads look") == given.count("the given heads look") == 2
    assert "visual head" not in given
    assert "2 given heads, (layer, head)" in given
    assert "(0, 1), (2, 3)" in given


def test_every_token_has_a_text_to_see():
    scene = told()
    blanks = [" ", "\t", "\x00", "\u200b", "", "\xa0 "]
    text = html_page(scene.capture, scene.image, [*blanks, " a"])
    assert Elements(text).buttons == ["␣", "⇥", "␀", "U+200B", "∅", "␣␣", " a"]


def test_texts_that_are_no_unicode_or_turn_lines_are_escaped(tmp_path):
    title = "red \x1b[31m, \u202eback, half \ud83d"
    path = write_html(
        tmp_path / "page.html", told().capture, told().image, ["half \ud83d", "a\u202eb"],
        title=title,
    )  # fmt: skip
    elements = Elements(path.read_text(encoding="utf-8"))
    assert elements.title == r"red \x1b[31m, \u202eback, half \ud83d"
    assert elements.buttons == [r"half \ud83d", r"a\u202eb"]


def test_a_page_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("before")

    def interrupted(file, text, **options):
        file.write_bytes(text.encode()[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_html(path, told().capture, told().image, [" a"])
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@needs_chromium
def test_address_chooses_the_token(page, maps, tokens, tmp_path):
    token = extremes(maps)[0]
    text = dom(page, f"token={token}", tmp_path)
    elements = Elements(text)
    pressed = [a["data-token"] for a in elements.all("button") if a["aria-pressed"] == "true"]
    assert pressed == [str(token)]
    assert elements.title == TITLE  # the hostile token did not run
    assert len(elements.all("script")) == 2
    share = f"{100 * maps[token].sum():.0f} % of the heads"
    assert share in re.sub(r"<[^>]+>", "", text)


@needs_chromium
def test_overlay_follows_the_token(page, maps, tmp_path):
    scene = told()
    span = scene.capture.images[0][0]
    region = scene.capture.region(0)
    marked = cells(torch.isin(region.image_positions, region.focus), span)
    top = maps.max()
    for token in extremes(maps):
        pixels = screenshot(page, f"token={token}", tmp_path).astype(int)
        heat = _patches(pixels, marked)
        strength = cells(maps[token] / top, span)
        assert heat[strength < 0.005].max(initial=0) < 10  # the faded picture is grey
        assert heat[strength > 0.02].min() > 15
        strong = strength > 0.1
        order = np.corrcoef(heat[strong], strength[strong])[0, 1] if strong.sum() > 2 else 1
        assert order > 0.5
        assert heat.argmax() == strength.argmax() or strength.flat[heat.argmax()] > 0.4


@needs_chromium
def test_page_is_dark_where_the_reader_wants_it_dark(page, tmp_path):
    light = screenshot(page, "token=1", tmp_path)
    dark = screenshot(page, "token=1", tmp_path, dark=True)
    assert light[-20:].mean() > 230
    assert dark[-20:].mean() < 40
    # Text stands out from the page in both: the heading holds pixels far from the background.
    for picture in (light, dark):
        heading = picture[20:60].astype(int)
        assert np.ptp(heading.mean(-1)) > 180


PROBE = """<script>
const log = [];
const shown = () => log.push(document.body.dataset.shown);
const answer = document.getElementById("answer");
const buttons = [...document.querySelectorAll(".token")];
const over = element => element.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
buttons[2].focus(); shown();
const key = name => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", {key: name, bubbles: true, cancelable: true}));
key("ArrowRight"); shown();
key("End"); shown();
key("Home"); shown();
key("ArrowLeft"); shown();
over(buttons[4]); shown();
answer.dispatchEvent(new PointerEvent("pointerleave")); shown();
const chart = document.querySelector(".strip svg"), box = chart.getBoundingClientRect();
chart.dispatchEvent(new PointerEvent("pointermove",
  {clientX: box.left + box.width * 5.5 / buttons.length})); shown();
chart.dispatchEvent(new PointerEvent("pointerleave")); shown();
buttons[3].click();
setTimeout(() => {
  shown();
  document.body.dataset.log = log.join(" ");
  document.body.dataset.stops = buttons.filter(button => button.tabIndex === 0).length;
}, 50);
</script>"""


@needs_chromium
def test_pointer_keys_and_strip_choose_the_token(page, tokens, tmp_path):
    probed = tmp_path / "probed.html"
    text = page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>")
    probed.write_text(text, encoding="utf-8")
    (body,) = Elements(dom(probed, "token=1", tmp_path)).all("body")
    last = len(tokens) - 1
    assert body["data-log"] == f"2 3 {last} 0 0 4 0 5 0 3"
    assert body["data-stops"] == "1"  # Tab goes to the answer once, arrow keys walk in it


LAYOUT = """<script>
const bottom = name => document.querySelector(name).getBoundingClientRect().bottom / innerHeight;
document.body.dataset.told = bottom("#told");
document.body.dataset.scale = bottom(".scale + p");
</script>"""


@needs_chromium
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("size", [(10, 500), (300, 600)])
@pytest.mark.parametrize(("width", "part", "most"), [(1200, "scale", 1.0), (700, "told", 0.75)])
def test_pictures_leave_room_for_what_is_said_of_them(size, count, width, part, most, tmp_path):
    capture = told().capture if count == 1 else halves()
    text = html_page(capture, [Image.new("RGB", size)] * count, told().tokens)
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", LAYOUT + "</body>"), encoding="utf-8")
    (body,) = Elements(dom(page, "token=1", tmp_path, width=width)).all("body")
    assert float(body[f"data-{part}"]) < most


def _patches(pixels: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Saturation at each patch of the page's picture, found by the outline of the region."""
    rows, columns = marked.nonzero()
    pink = (abs(pixels - [0xD6, 0x00, 0x7A]).sum(-1) < 30).nonzero()
    assert len(pink[0]), "no outline on the page"
    (upper, lower), (left, right) = [(axis.min(), axis.max() + 1) for axis in pink]
    side_y = (lower - upper) / (rows.max() + 1 - rows.min())
    side_x = (right - left) / (columns.max() + 1 - columns.min())
    heat = np.empty(marked.shape)
    for row, column in np.ndindex(marked.shape):
        y = round(upper + (row - rows.min() + 0.25) * side_y)
        x = round(left + (column - columns.min() + 0.25) * side_x)
        patch = pixels[y : y + round(side_y / 2), x : x + round(side_x / 2)]
        heat[row, column] = np.ptp(patch, axis=-1).mean()
    return heat
