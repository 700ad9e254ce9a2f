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

from datagen.config import Execution
from datagen.masks import Box, MasksConfig, ScoredBox, load_engines
from datagen.masks_original import OriginalMaskCutter

pytestmark = pytest.mark.full_engines


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> MasksConfig:
    """The settings of the full profile's engines, on small random weights."""
    folder = tmp_path_factory.mktemp("original")
    detector, bert, _ = save_grounding_dino(folder)
    segmenter, _ = save_segment_anything(folder)
    return MasksConfig(
        box_engine="groundingdino-py", mask_engine="segment-anything", box_model=str(detector), text_model=str(bert),
        mask_model=str(segmenter), min_stored_score=0, execution=Execution(device="cpu"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def ports(original: MasksConfig) -> MasksConfig:
    folder = Path(original.box_model).parent
    change = {"box_engine": "transformers", "mask_engine": "transformers"}
    change |= {"box_model": str(folder / "port"), "mask_model": str(folder / "sam-port")}
    return original.model_copy(update=change)


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    """Smooth random pictures (width, height)."""
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in sizes]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(small, sizes, strict=True)]


@pytest.fixture(scope="module", autouse=True)
def quietly() -> Iterator[None]:
    """One thread, as everywhere in these tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def close(first: ScoredBox, second: ScoredBox) -> bool:
    return abs(first.score - second.score) < 1e-3 and np.allclose(first.box, second.box, atol=0.5)


def test_both_packages_agree_with_their_ports(original: MasksConfig, ports: MasksConfig) -> None:
    finder, cutter = load_engines(original)
    port_finder, port_cutter = load_engines(ports)
    # At 800 x 800 neither resizes, so that nothing but the two networks differs.
    images, nouns = pictures((800, 800)), ["dog"]
    (found,), (ported,) = finder.find(images, nouns), port_finder.find(images, nouns)
    assert len(found) == original.max_boxes and len({round(one.score, 3) for one in found}) > 1
    assert all(map(close, found, ported)), (found, ported)

    # A batch of two sizes and texts of two lengths is what each of them is alone.
    images, nouns = pictures((320, 200), (200, 320)), ["dog", "teapot robot vase"]
    together = finder.find(images, nouns)
    for image, noun, best in zip(images, nouns, together, strict=True):
        assert close(best[0], finder.find([image], [noun])[0][0])

    boxes: list[Box] = [(40.0, 30.0, 250.0, 180.0), (10.0, 50.0, 150.0, 300.0)]
    proposed, ported_masks = cutter.cut(images, boxes), port_cutter.cut(images, boxes)
    for one, other, image in zip(proposed, ported_masks, images, strict=True):
        assert one.masks.shape == other.masks.shape == (3, image.height, image.width)
        assert one.masks.any() and not one.masks.all()
        assert (one.masks == other.masks).mean() > 0.99
        assert np.allclose(one.predicted_iou, other.predicted_iou, atol=0.01)
    single = load_engines(original.model_copy(update={"multimask": False}))[1].cut(images[:1], boxes[:1])
    assert single[0].masks.shape == (1, 200, 320)


def test_bfloat16_cuts_the_same(original: MasksConfig) -> None:
    images, boxes = pictures((320, 200)), [(40.0, 30.0, 250.0, 180.0)]
    exact, rounded = (
        OriginalMaskCutter(original.model_copy(update={"dtype": dtype})).cut(images, boxes)[0]
        for dtype in ("float32", "bfloat16")
    )
    assert (exact.masks == rounded.masks).mean() > 0.95
    assert np.allclose(exact.predicted_iou, rounded.predicted_iou, atol=0.05)


def test_a_noun_longer_than_the_text_encoder_reads(original: MasksConfig) -> None:
    assert load_engines(original)[0].find(pictures((64, 64)), ["teapot " * 400])[0]


@pytest.mark.parametrize("role", ["box_model", "mask_model"])
def test_checkpoints_are_read_strictly(original: MasksConfig, tmp_path: Path, role: str) -> None:
    state = torch.load(getattr(original, role), weights_only=True)
    inner = state.get("model", state)
    first = next(key for key in inner if "norm" in key)

    def error_of(content: object) -> str:
        torch.save(content, tmp_path / "broken.pth")
        with pytest.raises(ValueError, match=f"masks.{role}: .*broken.pth") as caught:
            load_engines(original.model_copy(update={role: str(tmp_path / "broken.pth")}))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    without = {key: value for key, value in inner.items() if key != first}
    assert "Missing key" in error_of({"model": without} if "model" in state else without)
    more = inner | {"another.weight": torch.zeros(1)}
    assert "Unexpected key" in error_of({"model": more} if "model" in state else more)
    assert "no checkpoint of weights alone" in error_of({"model": Path("x")})
    with pytest.raises(FileNotFoundError, match=f"masks.{role}: the folder .* holds no "):
        load_engines(original.model_copy(update={role: str(tmp_path)}))
