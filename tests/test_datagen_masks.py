"""Boxes, masks and gates: the transformers engines on small models, the choice among masks, and the reasons."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_datagen import save_tiny_grounding_dino, tiny_dataset_config, tiny_models

from datagen import gates, masks
from datagen.gates import GatesConfig, gate_fault
from datagen.masks import (
    MasksConfig,
    ProposedMasks,
    ScoredBox,
    best_boxes,
    bounding_box,
    box_iou,
    choose_mask,
    cleaned,
    encode_mask,
)
from datagen.masks_transformers import TransformersBoxFinder, TransformersMaskCutter
from shards.files import read_json_lines, read_tar_records
from shards.markers import rejects_path
from shards.memory import in_batches
from shards.stage import StageSpec, plan_shard

CONFIG = MasksConfig(box_model="none", mask_model="none")


def pictures(count: int, size: int = 64) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)]


def disc(size: int = 64, centre: tuple[int, int] = (32, 32), radius: int = 12) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return np.asarray((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2)


@pytest.mark.parametrize("kind", ["owlvit", "grounding-dino"])
def test_detectors_give_boxes_best_first(tmp_path: Path, kind: str) -> None:
    model, size = (tiny_models() / kind, 64) if kind == "owlvit" else (save_tiny_grounding_dino(tmp_path), 128)
    base = tiny_dataset_config(tiny_models()).masks
    config = base.model_copy(update={"box_model": str(model), "max_boxes": 3})
    finder = TransformersBoxFinder(config)
    nouns = ["dog", "teapot", "an extraordinarily long noun that no detector was ever asked for " * 3]
    found = finder.find(pictures(3, size), nouns)
    assert len(found) == 3 and any(found)
    for candidates in found:
        assert len(candidates) <= 3
        assert [one.score for one in candidates] == sorted((one.score for one in candidates), reverse=True)
        for one in candidates:
            left, top, right, bottom = one.box
            assert 0 <= left < right <= size and 0 <= top < bottom <= size and 0 <= one.score <= 1
    strict = TransformersBoxFinder(config.model_copy(update={"min_stored_score": 1.0}))
    assert strict.find(pictures(1, size), ["dog"]) == [[]]


@pytest.mark.parametrize("multimask", [True, False])
def test_segmenter_proposes_masks_of_the_images_size(multimask: bool) -> None:
    config = tiny_dataset_config(tiny_models()).masks.model_copy(update={"multimask": multimask})
    cutter = TransformersMaskCutter(config)
    for moved, wanted in ((9.0, 1.0), (-18.0, 0.0)):  # estimates of the model's own that no IoU can be
        cutter.model.mask_decoder.iou_prediction_head.proj_out.bias.detach().add_(moved)
        for one in cutter.cut(pictures(2, 96), [(10.0, 10.0, 50.0, 60.0), (0.0, 0.0, 96.0, 96.0)]):
            assert one.masks.dtype == bool and one.masks.shape == (3 if multimask else 1, 96, 96)
            assert one.predicted_iou == [wanted] * len(one.masks)


def test_boxes() -> None:
    assert bounding_box(disc()) == (20.0, 20.0, 45.0, 45.0)
    assert bounding_box(np.zeros((8, 8), dtype=bool)) == (0.0, 0.0, 0.0, 0.0)
    assert box_iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1 and box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert box_iou((0, 0, 2, 1), (1, 0, 3, 1)) == pytest.approx(1 / 3)


def test_boxes_that_are_none_are_dropped() -> None:
    found = [(5, 5, 5.5, 30), (-9, 60, 80, 70), (70, 5, 90, 9), (float("nan"), 1, 9, 9), (1, 1, 9, 9), (0, 0, 9, 9)]
    scored = [ScoredBox(box, 0.5) for box in found]
    at_limit, under = ScoredBox((1, 2, 3, 4), CONFIG.min_stored_score), ScoredBox((1, 2, 3, 4), 0.04)
    kept = best_boxes([under, at_limit, *scored], pictures(1)[0], CONFIG)
    # Those of one score in the order of their corners, so that it is the same on every device.
    assert [one.box for one in kept] == [(0, 0, 9, 9), (0, 60, 64, 64), (1, 1, 9, 9), at_limit.box]


def test_the_mask_that_fills_its_box_is_chosen() -> None:
    small, right, wide = disc(radius=3), disc(radius=12), disc(radius=30)
    proposed = ProposedMasks(np.stack([small, right, wide]), [0.95, 0.9, 0.93])
    mask, measures = choose_mask(proposed, bounding_box(right), CONFIG)
    assert np.array_equal(mask, right)
    proposals = measures.pop("proposals")
    assert measures == {
        "predicted_iou": 0.9, "box_agreement": 1.0, "area": pytest.approx(right.mean(), abs=1e-4), "border": 0.0,
    }  # fmt: skip
    assert [one["predicted_iou"] for one in proposals] == [0.95, 0.9, 0.93]
    assert [one["box_agreement"] for one in proposals] == [
        round(box_iou(bounding_box(one), bounding_box(right)), 4) for one in (small, right, wide)
    ]
    touching = disc(centre=(32, 0))
    assert choose_mask(ProposedMasks(touching[None], [1.0]), (0, 20, 13, 45), CONFIG)[1]["border"] == round(25 / 64, 4)
    empty = np.zeros((1, 64, 64), dtype=bool)
    assert choose_mask(ProposedMasks(empty, [0.5]), (0, 0, 9, 9), CONFIG)[1]["area"] == 0


def test_specks_and_holes_are_cleaned_and_large_parts_stay() -> None:
    mask = disc(radius=20)
    dirty = mask.copy()
    dirty[30:32, 30:32] = False
    dirty[0, 0] = dirty[60, 60] = True
    assert np.array_equal(cleaned(dirty, 0.005), mask)
    assert np.array_equal(cleaned(dirty, 0), dirty)
    ring = mask & ~disc(radius=10)  # the hole of a ring is larger than a hole to be filled
    assert np.array_equal(cleaned(ring, 0.005), ring)
    assert np.array_equal(cleaned(np.ones((8, 8), dtype=bool), 0.5), np.ones((8, 8), dtype=bool))
    tiny, speck = disc(radius=2), disc(centre=(5, 5), radius=1)
    assert np.array_equal(cleaned(tiny | speck, 0.01), tiny)  # itself smaller than what is cleaned


def test_parts_far_smaller_than_the_largest_are_dropped_and_holes_of_their_size_stay() -> None:
    subject = disc(radius=16) & ~disc(radius=3)
    crumb, handle = disc(centre=(5, 5), radius=3), disc(centre=(55, 55), radius=6)  # 3.6% and 14% of the subject
    assert np.array_equal(cleaned(subject | crumb | handle, 0, min_part=0.05), subject | handle)
    assert np.array_equal(cleaned(subject | crumb | handle, 0), subject | crumb | handle)
    config = CONFIG.model_copy(update={"min_part": 0.05})
    chosen, _ = choose_mask(ProposedMasks((subject | crumb)[None], [1.0]), bounding_box(subject), config)
    assert np.array_equal(chosen, subject)


def test_the_edge_is_soft_and_the_mask_is_what_is_over_half() -> None:
    mask = disc(radius=20)
    hard, soft = (np.asarray(Image.open(io.BytesIO(encode_mask(mask, width)))) for width in (1 / 64, 6 / 64))
    assert np.array_equal(hard, mask * 255)
    assert np.array_equal(soft >= 128, mask)
    row = soft[32].astype(int)
    assert (row[:8] == 0).all() and (row[20:44] == 255).all()
    assert (np.diff(row[:32]) >= 0).all() and len(set(row[:32].tolist())) >= 6  # rises over six pixels
    for even in (np.zeros_like(mask), np.ones_like(mask)):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_mask(even, 0.1)))), even * 255)


def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path) -> None:
    sizes = []

    class Full(Scripted):
        def find(self, images: list[Image.Image], nouns: list[str]) -> list[list[ScoredBox]]:
            sizes.append(len(images))
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().find(images, nouns)

    def encode(number: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (255, 255, 255)).save(buffer, "JPEG")
        return buffer.getvalue()

    source = write_images(tmp_path, encode, 7)
    config = MasksConfig(box_model="x", mask_model="y", execution={"batch_size": 6})
    plan = plan_shard(tmp_path, StageSpec("masks", 1, {}, {}, ".tar"), 0, [source])
    marker = masks.run(plan, config, Full(), Scripted(), config.execution.model_dump(), ignore)
    assert marker.records_out == 7 and marker.execution["batch_size"] == 2
    assert sizes == [6, 3, 2, 2, 2, 1]
    with pytest.raises(RuntimeError, match="illegal"):
        next(in_batches([1, 2], {"batch_size": 2}, broken))
    tries = iter(range(3))

    def never_fits(batch: Sequence[int]) -> None:
        raise torch.OutOfMemoryError(f"out of memory at try {next(tries)}")

    with pytest.raises(RuntimeError, match="out of memory at try 1"):
        next(in_batches([1, 2], {"batch_size": 2}, never_fits))


def test_boxes_do_not_depend_on_the_sizes_of_other_images(tmp_path: Path) -> None:
    sizes = [(128, 128), (128, 64), (128, 128), (96, 128)]

    def encode(number: int) -> bytes:
        buffer = io.BytesIO()
        pictures(4)[number].resize(sizes[number]).save(buffer, "PNG")
        return buffer.getvalue()

    source = write_images(tmp_path, encode, 4)
    model = save_tiny_grounding_dino(tmp_path / "detector")

    def boxes(batch_size: int) -> np.ndarray:
        execution = {"device": "cpu", "threads": 1, "batch_size": batch_size}
        change = {"box_model": str(model), "min_stored_score": 0, "max_boxes": 10, "execution": execution}
        config = MasksConfig(mask_model="x", **change)
        plan = plan_shard(tmp_path / str(batch_size), StageSpec("masks", 1, {}, {}, ".tar"), 0, [source])
        masks.run(plan, config, TransformersBoxFinder(config), Scripted(), config.execution.model_dump(), ignore)
        # Not by score: these are all but equal.
        records = [json.loads(parts["json"]) for _, parts in read_tar_records(plan.path)]
        return np.array([sorted(one["box"] for one in record["boxes"]) for record in records])

    assert np.allclose(boxes(1), boxes(4), atol=0.3)


def broken(batch: object) -> None:
    raise RuntimeError("an illegal memory access was encountered")


GOOD = {
    "box": [1, 1, 9, 9],
    "score": 0.5,
    "boxes": [{"box": [1, 1, 9, 9], "score": 0.5}],
    "area": 0.2,
    "border": 0.0,
    "predicted_iou": 0.9,
}


def test_boxes_of_one_thing_are_one_subject() -> None:
    def boxes(*found: tuple[float, list[int]]) -> dict[str, object]:
        return {**GOOD, "boxes": [{"box": box, "score": score} for score, box in found]}

    whole, again, head, other = [0, 0, 40, 80], [2, 0, 42, 78], [5, 0, 30, 20], [60, 10, 95, 80]
    one = boxes((0.9, whole), (0.8, again), (0.6, head), (0.2, other))
    two = boxes((0.9, whole), (0.6, head), (0.5, other))
    alone = GatesConfig(max_subjects=1)
    assert gate_fault(one, alone) is None
    assert gate_fault(two, alone) == ("several subjects", 2)
    assert gate_fault(two, GatesConfig()) is None and gate_fault(two, GatesConfig(max_subjects=2)) is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"box": None}, ("no box", None)),
        ({"score": 0.29}, ("low box score", 0.29)),
        ({"area": 0.01}, ("subject too small", 0.01)),
        ({"area": 0.99}, ("subject too large", 0.99)),
        ({"border": 0.05}, ("touches the border", 0.05)),
        ({"predicted_iou": 0.1}, ("low predicted IoU", 0.1)),
        ({"score": 0.3, "area": 0.02, "border": 25 / 512, "predicted_iou": 0.7}, None),  # at the limits
        ({"area": 0.75}, None),
    ],
)
def test_gates_name_the_reason(change: dict[str, object], fault: object) -> None:
    assert gate_fault({**GOOD, **change}, GatesConfig()) == fault


class Scripted:
    """A detector and segmenter that find a disc in bright images and nothing in dark ones."""

    nouns: tuple[str, ...] = ()

    def find(self, images: list[Image.Image], nouns: list[str]) -> list[list[ScoredBox]]:
        self.nouns += (*nouns,)
        box = bounding_box(disc())
        return [[ScoredBox(box, 0.9)] if np.asarray(image).mean() > 100 else [] for image in images]

    def cut(self, images: list[Image.Image], boxes: list[tuple[float, float, float, float]]) -> list[ProposedMasks]:
        return [ProposedMasks(disc()[None], [0.8]) for _ in images]


def ignore(done: int, total: int) -> None:
    """No progress to show."""


def write_images(run: Path, encode: Callable[[int], bytes], count: int) -> Path:
    plan = plan_shard(run, StageSpec("images", 1, {}, {}, ".tar"), 0)
    with plan.writing(records_in=count) as out:
        for number in range(count):
            out.add({"key": f"0-{number}", "subject": "Dog", "models": {}}, {"jpg": encode(number)})
    return plan.path


def test_masks_then_gates_keep_account(tmp_path: Path) -> None:
    def encode(number: int) -> bytes:
        if number == 4:
            return b"not an image"
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (255, 255, 255) if number % 2 else (0, 0, 0)).save(buffer, "JPEG")
        return buffer.getvalue()

    source = write_images(tmp_path, encode, 6)
    config = MasksConfig(box_model="x", mask_model="y", execution={"batch_size": 4})
    plan = plan_shard(tmp_path, StageSpec("masks", 1, {}, {"box_model": "b"}, ".tar"), 0, [source])
    finder = Scripted()
    marker = masks.run(plan, config, finder, Scripted(), config.execution.model_dump(), ignore)
    assert finder.nouns == ("dog",) * 5  # detectors read lower case
    assert (marker.records_in, marker.records_out, marker.rejected) == (6, 5, {"unreadable image": 1})
    found = dict(read_tar_records(plan.path))
    assert [sorted(parts) for parts in found.values()] == [["json"], ["json", "mask.png"]] * 2 + [["json", "mask.png"]]
    assert json.loads(found["0-0"]["json"])["box"] is None
    record = json.loads(found["0-1"]["json"])
    assert record["boxes"] == [{"box": [20.0, 20.0, 45.0, 45.0], "score": 0.9}] and record["score"] == 0.9
    mask = np.asarray(Image.open(io.BytesIO(found["0-1"]["mask.png"])))
    assert np.array_equal(mask, disc() * 255)

    gate = plan_shard(tmp_path, StageSpec("gates", 1, {}), 0, [plan.path])
    assert gates.run(gate, GatesConfig()).rejected == {"no box": 2}
    assert [record["key"] for record in read_json_lines(gate.path)] == ["0-1", "0-3", "0-5"]
    assert {record["key"] for record in read_json_lines(rejects_path(gate.path))} == {"0-0", "0-2"}
