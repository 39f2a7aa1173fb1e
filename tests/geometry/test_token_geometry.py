"""Geometries of real processors at real sizes, and what has none."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import vrga_ext
from tests.geometry.families import CASES, anyres, square
from tests.prompts.processors import tokenizer
from vrga_ext.geometry import find, token_geometry

NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
CROP = {"size": {"shortest_edge": 336}, "crop_size": square(336)}
ANYRES = CROP | {"image_grid_pinpoints": NEXT}
TILED = {"crop_to_patches": True}
PAN = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
# Processor, its settings, options of the call, size, tokens, tokens without a place, and rectangles
# of some tokens by their index.
TABLE = [
    ("CLIP", CROP, {}, (640, 400), 576, 0,
     {0: (119.2, 0, 135.9, 16.7), 575: (503, 383.3, 519.6, 400)}),
    ("CLIP", CROP, {}, (400, 1000), 576, 0,
     {0: (0, 300, 16.7, 316.7), 575: (383.3, 683.3, 400, 700)}),
    ("Llava", CROP | {"do_pad": True}, {}, (640, 400), 576, 192,
     {96: (0, 0, 26.7, 13.3), 479: (613.3, 386.7, 640, 400)}),
    ("DeepseekVL", {}, {}, (640, 400), 576, 192,
     {96: (0, 0, 26.7, 13.3), 479: (613.3, 386.7, 640, 400)}),
    ("DeepseekVL", {}, {}, (800, 200), 576, 432,
     {216: (0, 0, 33.3, 33.3), 359: (766.7, 166.7, 800, 200)}),
    ("LlavaNext", ANYRES, {}, (640, 400), 2046, 30,
     {0: (0, 0, 26.7, 16.7), 2044: (626.7, 386.7, 640, 400)}),
    ("LlavaNext", ANYRES, {}, (300, 700), 1976, 56,
     {0: (0, 0, 12.5, 29.2), 1974: (287.5, 687.5, 300, 700)}),
    ("LlavaNext", ANYRES, {}, (1000, 10), 576, 0, {575: (958.3, 9.6, 1000, 10)}),
    ("LlavaNext", ANYRES, {}, (10, 1000), 648, 72, {575: (9.6, 958.3, 10, 1000)}),
    ("LlavaOnevision", {}, {}, (640, 400), 2599, 34,
     {0: (0, 0, 23.3, 14.6), 2597: (623.3, 386.7, 635, 398.3)}),
    ("LlavaOnevision", {}, {}, (640, 400), 730, 244, {135: (0, 0, 23.3, 20)}),
    ("Gemma3", {"size": square(896)}, PAN, (640, 400), 768, 0,
     {0: (0, 0, 40, 25), 256: (0, 0, 20, 25), 767: (620, 375, 640, 400)}),
    ("Pixtral", {}, {}, (640, 400), 1000, 0, {0: (0, 0, 16, 16), 999: (624, 384, 640, 400)}),
    ("Gemma4", {}, {}, (640, 400), 273, 0, {0: (0, 0, 30.5, 30.8)}),
    ("Qwen2VL", {}, {}, (640, 400), 322, 0, {0: (0, 0, 27.8, 28.6)}),
    ("Qwen2VL", {"patch_size": 16}, {}, (640, 400), 240, 0, {0: (0, 0, 32, 33.3)}),
    ("VideoLlama3", {}, {}, (640, 400), 1334, 0, {1333: (626.1, 386.2, 640, 400)}),
    ("HunYuanVL", {}, {}, (640, 400), 273, 0, {272: (609.5, 369.2, 640, 400)}),
    ("Fuyu", {}, {}, (640, 400), 308, 0, {307: (630, 390, 640, 400)}),
    ("Siglip2", {}, {}, (640, 400), 240, 0, {0: (0, 0, 32, 33.3)}),
    ("Idefics3", {}, {}, (640, 400), 2197, 0,
     {0: (0, 0, 12.3, 10.3), 2196: (590.8, 369.2, 640, 400)}),
    ("Idefics3", {}, {"do_image_splitting": False}, (640, 400), 169, 0, {0: (0, 0, 49.2, 30.8)}),
    ("GotOcr2", {"size": square(448)}, TILED, (640, 400), 1792, 0,
     {0: (0, 0, 13.3, 12.5), 1791: (600, 375, 640, 400)}),
    ("GotOcr2", {"size": square(364)}, TILED, (640, 400), 1183, 0,
     {0: (0, 0, 16.4, 15.4), 1182: (590.8, 369.2, 640, 400)}),
    ("Ovis2", {"size": square(448)}, TILED, (640, 400), 768, 0,
     {0: (0, 0, 40, 25), 767: (600, 387.5, 640, 400)}),
    ("MiniCPMV4_6", {}, {}, (1000, 700), 350, 0,
     {0: (0, 0, 100, 100), 349: (950, 650, 1000, 700)}),
]  # fmt: skip
CONFIGS = {
    "LlavaNext": lambda processor: anyres(336, 14, NEXT),
    "LlavaOnevision": lambda processor: anyres(384, 14, processor.image_grid_pinpoints),
}


def build(name, **settings):
    name = f"{name}ImageProcessorPil"
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return getattr(transformers, name)(**settings)


@pytest.mark.parametrize(
    ("name", "settings", "options", "size", "count", "nowhere", "rects"),
    TABLE,
    ids=[f"{row[0]}-{row[3][0]}x{row[3][1]}-{row[4]}" for row in TABLE],
)
def test_rectangles_at_real_sizes(name, settings, options, size, count, nowhere, rects):
    processor = build(name, **settings)
    config = CONFIGS[name](processor) if name in CONFIGS else None
    geometry = token_geometry(processor, size, count, config=config, **options)
    assert geometry is not None
    assert len(geometry) == count
    assert np.isnan(geometry.rects).all(1).sum() == nowhere
    for token, rect in rects.items():
        np.testing.assert_allclose(geometry.rects[token], rect, atol=0.5)


@pytest.mark.parametrize(("name", "levels"), [("idefics3", (1, 0)), ("ovis2", (0, 1))])
def test_levels_stand_in_the_order_of_the_prompt(name, levels):
    case = CASES[name]
    count = case.tokens(case.run(Image.new("RGB", (150, 96)))).count
    geometry = token_geometry(case.build(), (150, 96), count, **case.options)
    assert (geometry.level[0], geometry.level[-1]) == levels


@pytest.fixture
def notices(monkeypatch):
    """Forget which notices were given and what was found."""
    monkeypatch.setattr(find, "_noticed", set())
    monkeypatch.setattr(find, "_found", type(find._found)())


@pytest.mark.usefixtures("notices")
@pytest.mark.parametrize("name", ["qwen2_vl", "llava", "siglip2", "idefics3"])
def test_one_pixel_has_no_geometry(name):
    with pytest.warns(vrga_ext.VRGAWarning, match=r"without places \(a picture of one pixel\)"):
        assert token_geometry(CASES[name].build(), (1, 1), 4) is None


@pytest.mark.usefixtures("notices")
@pytest.mark.parametrize(
    "config",
    [
        SimpleNamespace(perceiver_config={}),
        SimpleNamespace(num_query_tokens=64, vision_config=None),
        SimpleNamespace(vision_config=SimpleNamespace(sam_config={})),
    ],
)
def test_learned_queries_have_no_place(config):
    """Their number is that of a grid, so that only the configuration tells."""
    processor = CASES["paligemma"].build()
    assert token_geometry(processor, (150, 96), 64) is not None
    with pytest.warns(vrga_ext.VRGAWarning, match="_config|query_tokens"):
        assert token_geometry(processor, (150, 96), 64, config=config) is None


@pytest.mark.usefixtures("notices")
@pytest.mark.parametrize(
    ("name", "has_place"),
    [
        *((name, False) for name in ("Aria", "Blip2", "DeepseekOcr2", "Idefics2", "Mllama")),
        *((name, True) for name in ("Gemma3", "Idefics3", "InternVL", "Llava", "PaliGemma")),
    ],
)
def test_configurations_of_transformers(name, has_place):
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {name}Config")
    config = getattr(transformers, f"{name}Config")()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", vrga_ext.VRGAWarning)
        geometry = token_geometry(CASES["paligemma"].build(), (150, 96), 64, config=config)
    assert (geometry is not None) == has_place


@pytest.mark.usefixtures("notices")
@pytest.mark.parametrize(("name", "count"), [("llava", 67), ("qwen2_vl", 7), ("idefics3", 100)])
def test_a_number_that_does_not_add_up_is_said_once(name, count):
    processor = CASES[name].build()
    with pytest.warns(vrga_ext.VRGAWarning, match="number of image tokens does not fit"):
        assert token_geometry(processor, (150, 96), count) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert token_geometry(processor, (150, 96), count) is None
        assert token_geometry(processor, (90, 96), count + 128) is None


@pytest.mark.usefixtures("notices")
def test_tiles_that_are_put_together_again_need_a_configuration():
    case = CASES["llava_next"]
    with pytest.warns(vrga_ext.VRGAWarning, match="config is needed"):
        assert token_geometry(case.build(), (150, 96), 64) is None
    assert token_geometry(case.build(), (1000, 10), 64, config=case.config) is not None


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000)])
@pytest.mark.parametrize("name", ["llava", "llava, padded", "llava_next", "pixtral", "gemma4"])
def test_extreme_shapes(name, size):
    """The model's own order has as many tokens, and each side of the picture is shown."""
    case = CASES[name]
    tokens = case.tokens(case.run(Image.new("RGB", size)))
    geometry = token_geometry(case.build(), size, tokens.count, config=case.config)
    assert geometry is not None
    shown = geometry.rects[geometry.level >= 0]
    if name != "llava":  # cuts out the middle square
        np.testing.assert_allclose(shown[:, 2:].max(0) - shown[:, :2].min(0), size, rtol=0.02)


@pytest.mark.parametrize("name", ["pixtral", "llava_next", "idefics3", "qwen2_vl"])
def test_a_picture_among_others_is_processed_as_it_is_alone(name):
    case = CASES[name]
    rng = np.random.default_rng(0)
    one, other = (
        rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((96, 150), (60, 90))
    )
    alone, both = case.run(one)["pixel_values"], case.run(one, other)["pixel_values"]
    common = tuple(slice(min(a, b)) for a, b in zip(alone.shape, both.shape, strict=True))
    assert np.array_equal(alone[common], both[common])


def test_one_of_several_pictures_of_a_prompt_has_no_tiles_in_llava_onevision():
    """It is padded to a square, where the whole of a single picture is stretched."""
    case = CASES["llava_onevision"]
    pictures = [Image.new("RGB", (150, 96), grey) for grey in ("black", "white")]
    black, white = (
        case.build()(images=[[picture] * 2], return_tensors="pt")["pixel_values"][0, 0, 0]
        for picture in pictures
    )
    shown = (black != white).unfold(0, 14, 14).unfold(1, 14, 14).flatten(2).any(2).flatten()
    geometry = token_geometry(case.build(), (150, 96), 65, config=case.config)
    assert geometry.level.tolist() == [0 if token else -1 for token in shown] + [-1]


@pytest.mark.parametrize("size", [(150, 150), (150, 140)])
def test_a_mosaic_that_is_shrunk(size):
    """Many tiles are shrunk bilinearly: tokens are mixtures then, spread evenly."""
    pinpoints = [[472, 472]]
    case = replace(
        CASES["llava_onevision"],
        settings={"size": square(118), "image_grid_pinpoints": pinpoints},
        config=anyres(118, 14, pinpoints),
    )
    output = case.run(Image.new("RGB", size))
    modeling = importlib.import_module(
        "transformers.models.llava_onevision.modeling_llava_onevision"
    )
    (packed,), _ = modeling.LlavaOnevisionModel.pack_image_features(
        SimpleNamespace(config=case.config),
        [torch.zeros(output["pixel_values"].shape[1], 64, 1)],
        output["image_sizes"],
        image_newline=torch.tensor([-1.0]),
    )
    rows = int((packed < 0).sum())
    columns = (len(packed) - 64) // rows - 1
    assert rows * columns < 30 * 30  # of 32 x 32 less what is padding
    geometry = token_geometry(case.build(), size, len(packed), config=case.config)
    own = geometry.rects[64:].reshape(rows, columns + 1, 4)
    assert np.isnan(own[:, -1]).all()
    step = 14 / 472 * 150  # pixels of a token before
    for side, of, middles in ((0, columns, own[0, :-1]), (1, rows, own[:, 0])):
        wanted = (np.arange(of) + 0.5) * size[side] / of
        found = (middles[:, side] + middles[:, side + 2]) / 2
        np.testing.assert_allclose(found, wanted, atol=0.6 * step)


def test_the_defaults_of_a_processor_count():
    """The image processor's own default is one tile; the processor around it asks for several."""
    if not hasattr(transformers.ProcessorMixin, "valid_processor_kwargs"):
        pytest.skip(f"transformers {transformers.__version__}: not told by a processor")
    inner = build("GotOcr2", size=square(112), max_patches=6)
    processor = transformers.AyaVisionProcessor(inner, tokenizer("context"), 28, 112)
    tokens = token_geometry(processor, (150, 96), 16 * 7)
    assert tokens.level.tolist() == [1] * 96 + [0] * 16
    whole = token_geometry(processor, (150, 96), 16, crop_to_patches=False)
    assert whole.level.tolist() == [0] * 16


def test_what_was_found_is_kept(monkeypatch):
    processor = CASES["llava"].build()
    first = token_geometry(processor, (152, 96), 64)
    assert token_geometry(CASES["llava"].build(), (152, 96), 64) is first
    assert token_geometry(processor, (96, 152), 64) is not first
    processor.do_center_crop = False
    processor.size = {"height": 112, "width": 112}
    assert not np.array_equal(token_geometry(processor, (152, 96), 64).rects, first.rects)
    with pytest.raises(ValueError, match="read-only"):
        first.rects[0] = 0
    monkeypatch.setattr(find, "_LARGEST_CACHE", 2)
    for width in (100, 101, 102):
        token_geometry(processor, (width, 96), 64)
    assert len(find._found) == 2


def test_bad_arguments():
    processor = CASES["llava"].build()
    for size in ((0, 4), (4, -1), (4.5, 4), 4, (4, 4, 4), None):
        with pytest.raises(ValueError, match=r"size: wanted \(width, height\)"):
            token_geometry(processor, size, 64)
    for count in (0, -3, 2.5, "9"):
        with pytest.raises(ValueError, match="num_tokens: wanted"):
            token_geometry(processor, (40, 40), count)
    for other in (None, "llava", tokenizer("context")):
        with pytest.raises(TypeError, match="processor: wanted an image processor"):
            token_geometry(other, (40, 40), 64)
