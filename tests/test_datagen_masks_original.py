"""Grounding DINO and Segment Anything by their authors' packages against the ports in transformers, same weights.

`make full-engines` runs these tests, which fail without the packages; `make test` leaves them out.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_original import save_grounding_dino, save_segment_anything

from datagen import masks_original
from datagen.config import Execution
from datagen.masks import Box, BoxFinder, MaskCutter, MasksConfig, ScoredBox, load_engines
from datagen.masks_original import OriginalBoxFinder, OriginalMaskCutter

pytestmark = pytest.mark.full_engines


SHORT, LONG = 256, 512  # of what the detectors see in these tests, so that they take seconds


@pytest.fixture(scope="module", autouse=True)
def small_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks_original, "SHORT_SIDE", SHORT)
        patch.setattr(masks_original, "LONG_SIDE", LONG)
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> MasksConfig:
    """The settings of the full profile's engines, on small random weights."""
    folder = tmp_path_factory.mktemp("original")
    detector, bert, _ = save_grounding_dino(folder, SHORT, LONG)
    segmenter, _ = save_segment_anything(folder)
    return MasksConfig(
        box_engine="groundingdino-py", mask_engine="segment-anything", box_model=str(detector), text_model=str(bert),
        mask_model=str(segmenter), min_stored_score=0, execution=Execution(device="cpu", threads=1),
    )  # fmt: skip


@pytest.fixture(scope="module")
def engines(original: MasksConfig) -> tuple[BoxFinder, MaskCutter]:
    return load_engines(original)


@pytest.fixture(scope="module")
def ports(original: MasksConfig) -> tuple[BoxFinder, MaskCutter]:
    folder = Path(original.box_model).parent
    change = {"box_engine": "transformers", "mask_engine": "transformers"}
    change |= {"box_model": str(folder / "port"), "mask_model": str(folder / "sam-port")}
    return load_engines(original.model_copy(update=change))


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    """Smooth random pictures (width, height)."""
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in sizes]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(small, sizes, strict=True)]


def close(first: ScoredBox, second: ScoredBox) -> bool:
    return abs(first.score - second.score) < 1e-3 and np.allclose(first.box, second.box, atol=0.5)


Engines = tuple[BoxFinder, MaskCutter]


def test_boxes_agree_with_the_port(original: MasksConfig, engines: Engines, ports: Engines) -> None:
    # Of the short side that the detectors see, so that neither resizes and nothing but the networks differs.
    images, nouns = pictures((SHORT, SHORT), (320, SHORT), (320, SHORT)), ["dog", "vase", "teapot robot vase"]
    # Two beside each other, whose nouns differ in length, must be read as each alone.
    together = engines[0].find(images[:1], nouns[:1]) + engines[0].find(images[1:], nouns[1:])
    for image, noun, found in zip(images, nouns, together, strict=True):
        (ported,) = ports[0].find([image], [noun])
        assert len(found) == original.max_boxes and len({round(one.score, 3) for one in found}) > 1
        assert all(map(close, found, ported)), (found, ported)
    other = engines[0].find(images[:1], ["teapot"])[0]
    assert not all(map(close, together[0], other))  # it reads


def test_masks_agree_with_the_port(original: MasksConfig, engines: Engines, ports: Engines) -> None:
    images = pictures((320, 200), (200, 320))
    boxes: list[Box] = [(40.0, 30.0, 250.0, 180.0), (10.0, 50.0, 150.0, 300.0)]
    for one, other, image in zip(engines[1].cut(images, boxes), ports[1].cut(images, boxes), images, strict=True):
        assert one.masks.shape == other.masks.shape == (3, image.height, image.width)
        assert one.masks.any() and not one.masks.all()
        assert (one.masks == other.masks).mean() > 0.99
        assert np.allclose(one.predicted_iou, other.predicted_iou, atol=0.01)
    single = OriginalMaskCutter(original.model_copy(update={"multimask": False}))
    assert single.cut(images[:1], boxes[:1])[0].masks.shape == (1, 200, 320)
    with torch.no_grad():
        single.model.mask_decoder.iou_prediction_head.layers[-1].bias.add_(9.0)
    assert single.cut(images[:1], boxes[:1])[0].predicted_iou == [1.0]  # an estimate of more is none of an IoU


def test_bfloat16_cuts_the_same(original: MasksConfig, engines: Engines) -> None:
    images, boxes = pictures((320, 200)), [(40.0, 30.0, 250.0, 180.0)]
    exact = engines[1].cut(images, boxes)[0]
    rounded = OriginalMaskCutter(original.model_copy(update={"dtype": "bfloat16"})).cut(images, boxes)[0]
    assert (exact.masks == rounded.masks).mean() > 0.9
    assert np.allclose(exact.predicted_iou, rounded.predicted_iou, atol=0.05)


def test_a_noun_longer_than_the_text_encoder_reads(engines: Engines) -> None:
    assert engines[0].find(pictures((64, 64)), ["teapot " * 400])[0]


def test_images_are_shown_at_the_size_of_the_detectors_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks_original, "SHORT_SIDE", 800)
    monkeypatch.setattr(masks_original, "LONG_SIDE", 1333)
    shapes = [tuple(masks_original._pixels(image).shape) for image in pictures((512, 512), (300, 200), (100, 400))]
    assert shapes == [(3, 800, 800), (3, 800, 1200), (3, 1332, 333)]


@pytest.mark.parametrize("role", ["box_model", "mask_model"])
def test_checkpoints_are_read_strictly(original: MasksConfig, tmp_path: Path, role: str) -> None:
    load = OriginalBoxFinder if role == "box_model" else OriginalMaskCutter
    state = torch.load(getattr(original, role), weights_only=True)
    weights = state.get("model", state)

    def error_of(content: object) -> str:
        torch.save(content, tmp_path / "broken.pth")
        with pytest.raises(ValueError, match=f"masks.{role}: .*broken.pth") as caught:
            load(original.model_copy(update={role: str(tmp_path / "broken.pth")}))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    first = next(key for key in weights if "norm" in key)
    other = {("another.weight" if key == first else key): value for key, value in weights.items()}
    said = error_of({"model": other} if "model" in state else other)
    assert "Missing key" in said and "Unexpected key" in said
    assert "no checkpoint of weights alone" in error_of({"model": Path("x")})
    with pytest.raises(FileNotFoundError, match=f"masks.{role}: the folder .* holds no "):
        load(original.model_copy(update={role: str(tmp_path)}))
