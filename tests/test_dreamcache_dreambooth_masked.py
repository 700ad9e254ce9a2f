"""Masked metrics by the dataset's own mask stage with a plain detector, and extra columns, against sums written out."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_embedders import save_tiny_dinov2, write_tiny_benchmark
from tiny_evaluation import CONFIG, World

from datagen import masks
from datagen.masks import MasksConfig, ProposedMasks, ScoredBox
from dreamcache.dreambooth.cases import load_benchmark
from dreamcache.dreambooth.embedders import load_dinov2, open_image
from dreamcache.dreambooth.generation import generate_cases
from dreamcache.dreambooth.masked import subject_alone, write_pictures
from dreamcache.dreambooth.rows import score_cases
from dreamcache.dreambooth.scoring import embed_cases, embed_shard
from dreamcache.dreambooth.summary import compare, summarize
from shards.files import read_tar_records
from shards.markers import read_marker
from shards.stage import StageSpec

STAGE = StageSpec("masks", 1, {"query": "{noun}."}, {"box_model": "b" * 64, "mask_model": "m" * 64}, ".tar")
MASKED = CONFIG.model_copy(update={"masked_metrics": True, "variants": ("given", "copy-paste"), "images_per_prompt": 2})


class Detector:
    """Finds the noun in the middle half of every image, with the score 0.9, of cats 0.2."""

    nouns: list[str] = []

    def find(self, images, nouns):
        self.nouns += nouns
        return [
            [ScoredBox((w / 4, h / 4, 3 * w / 4, 3 * h / 4), 0.2 if "cat" in noun else 0.9)]
            for (w, h), noun in zip((image.size for image in images), nouns, strict=True)
        ]


class Cutter:
    """A mask that is its box."""

    def cut(self, images, boxes):
        found = []
        for image, (left, top, right, bottom) in zip(images, boxes, strict=True):
            mask = np.zeros((1, image.height, image.width), bool)
            mask[0, int(top) : int(bottom), int(left) : int(right)] = True
            found.append(ProposedMasks(mask, [1.0]))
        return found


def make_masks(evaluation, real):
    config, made = MasksConfig(box_model="none", mask_model="none"), 0
    for variant, subject, plan in evaluation.mask_plans(real):
        if plan.state() != "done":
            if evaluation.picture_plan(variant, subject).state() != "done":
                write_pictures(evaluation, variant, subject)
            plan = evaluation.mask_plan(variant, subject)
            masks.run(plan, config, Detector(), Cutter(), {"batch_size": 8}, lambda done, total: None)
            made += 1
    return made


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world"))
    generator = np.random.default_rng(0)
    world.given = {}
    for case in world.benchmark.cases(2, CONFIG.seed, None, CONFIG.prompts):
        world.given[case.key] = world.benchmark.folder.parent / f"{case.key}.png"
        Image.fromarray(generator.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(world.given[case.key])
    world.embedders["dinov2"] = load_dinov2(save_tiny_dinov2(world.benchmark.folder.parent / "dinov2"))
    world.models["dinov2"] = world.embedders["dinov2"].identity
    return world


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """Given images with all columns."""
    folder = tmp_path_factory.mktemp("run") / "evaluation"
    evaluation = world.evaluation(folder, MASKED, mask_stage=STAGE, given=world.given)
    assert make_masks(evaluation, real=True) == 0, "all real images have masks beside them"
    with pytest.raises(ValueError, match="masks not made yet"):
        embed_cases(evaluation, world.embedders)
    assert make_masks(evaluation, real=False) == 4
    embed_cases(evaluation, world.embedders)
    assert evaluation.changes() == []
    return evaluation


def test_masked_scores_are_those_of_the_subject_on_white(world, finished):
    rows, real = score_cases(finished)
    row = next(row for row in rows if row["case"] == "cup_0-01-1" and row["variant"] == "given")
    assert set(Detector.nouns) == {"cup", "tabby cat"}, "the mask stage is asked for the class word"
    pixels = np.full((40, 56, 3), 255, np.uint8)
    pixels[10:30, 14:42] = np.asarray(open_image(world.given["cup_0-01-1"]))[10:30, 14:42]
    cup = world.benchmark.by_name["cup_0"]
    reference = np.asarray(open_image(cup.reference)).copy()
    reference[np.asarray(Image.open(cup.mask(cup.reference))) < 128] = 255
    images = [Image.fromarray(pixels), Image.fromarray(reference)]
    dino, clip = world.dino.embed_images(images), world.clip.embed_images(images)
    assert row["mdino"] == pytest.approx(float(dino[0] @ dino[1]), abs=1e-6)
    assert row["mclip_i"] == pytest.approx(float(clip[0] @ clip[1]), abs=1e-6)
    assert abs(row["mdino"] - row["dino"]) > 1e-4 and row["masked_references"] == 1
    assert row["masking"] == {
        "models": dict(STAGE.models),
        "settings": {
            "query": "{noun}.",
            "min_box_score": 0.3,
            "background": "white",
            "real_masks": "the benchmark's own",
        },
    }
    cats = [row for row in rows if row["subject"] == "cat" and row["variant"] == "given"]
    assert all(row["mdino"] is None and row["dino"] is not None for row in cats), "their boxes score too little"
    marker = read_marker(finished.folder / "masked/given/00003.tar")
    assert marker.rejected == {"subject not found": 4}
    pasted = [row for row in rows if row["variant"] == "copy-paste"]
    assert all(row["mdino"] == pytest.approx(1) for row in pasted) and len(pasted) == 16
    assert {"mdino", "mclip_i", "dinov2", "dino", "clip_i"} <= real[0].keys()


def test_extra_columns_and_their_summary(world, finished):
    rows, real = score_cases(finished)
    given = [row for row in rows if row["variant"] == "given"]
    first, second = (world.given[f"cat-00-{position}"] for position in (0, 1))
    embeddings = world.dino.embed_images([first, second])
    pair = [row for row in given if row["case"].startswith("cat-00-")]
    expected = 1 - float(embeddings[0] @ embeddings[1])
    assert [row["diversity"] for row in pair] == pytest.approx([expected, expected], abs=1e-6)
    cat = world.benchmark.by_name["cat"]
    dinov2 = world.embedders["dinov2"].embed_images([first, cat.reference])
    assert pair[0]["dinov2"] == pytest.approx(float(dinov2[0] @ dinov2[1]), abs=1e-6)
    assert pair[0]["models"]["dinov2"] == world.models["dinov2"] and "backbone" not in pair[0]["models"]

    summary = summarize(rows, real)
    kinds = summary["variants"]["given"]
    assert kinds["overall"]["mdino"]["count"] == 12 and kinds["overall"]["dino"]["count"] == 16
    assert "mdino" not in kinds["live"] and "mdino" not in kinds["subjects"]["cat"]
    assert kinds["overall"]["mdino"]["mean"] == pytest.approx(np.mean([r["mdino"] for r in given if r["mdino"]]))
    assert summary["variants"]["copy-paste"]["overall"]["diversity"]["mean"] == pytest.approx(0, abs=1e-6)
    assert summary["masking"]["settings"]["background"] == "white"
    stored = json.loads(json.dumps([rows, real]))
    assert json.dumps(summarize(*stored)) == json.dumps(summary)

    pasted = [row for row in rows if row["variant"] == "copy-paste"]
    assert compare(given, pasted)["overall"]["mdino"]["count"] == 12, "where both found the subject"
    otherwise = [row | {"masking": {"settings": {}}} for row in pasted]
    assert compare(given, otherwise)["overall"].keys() == {"dino", "clip_i", "clip_t", "dinov2", "diversity"}


def test_another_background_or_threshold_needs_no_mask_model(world, finished):
    grey = world.evaluation(
        finished.folder, MASKED.model_copy(update={"background": "grey"}), mask_stage=STAGE, given=world.given
    )
    assert {line.split(".")[0] for line in grey.changes()} == {"masked/real", "masked/given"}
    other = dataclasses.replace(finished, mask_stage=dataclasses.replace(STAGE, models={"box_model": "c" * 64}))
    stages = {line.split(".")[0].split(":")[0].rsplit("/0", 1)[0] for line in other.changes()}
    assert stages == {"masks/given", "masked/given"}, "benchmark's own masks are not made by a model"
    everyone = finished.config.model_copy(update={"protocol": "all-references"})
    rows, _ = score_cases(dataclasses.replace(finished, config=everyone))
    assert {(row["references"], row["masked_references"]) for row in rows} == {(3, 3)}


def test_references_without_a_mask_get_the_stage_s(world, tmp_path):
    folder = write_tiny_benchmark(tmp_path / "benchmark")
    for mask in folder.glob("*/*.mask.png"):
        if mask.parent.name in ("cup_2", "cat"):
            mask.unlink()
    benchmark = load_benchmark(folder)
    cup, cat = benchmark.by_name["cup_2"], benchmark.by_name["cat"]
    config = CONFIG.model_copy(update={"variants": ("adapters",), "prompts": 1})
    plain = world.evaluation(tmp_path / "plain", config, benchmark=benchmark)
    assert plain.reference("adapters", cup).mask is None and plain.mask_plans(True) == []
    evaluation = world.evaluation(tmp_path / "evaluation", config, benchmark=benchmark, mask_stage=STAGE)
    assert evaluation.image_plan("adapters", cup).unfinished == ("masks/real/00002.tar",)
    assert make_masks(evaluation, real=True) == 2, "of the subjects that lack a mask alone"
    mask = np.asarray(Image.open(io.BytesIO(evaluation.reference("adapters", cup).mask))) >= 128
    assert mask.shape == (48, 48) and mask[12:36, 12:36].all() and mask.sum() == 24 * 24
    assert evaluation.reference("adapters", cat).mask is None, "not found with a score that suffices"
    generate_cases(evaluation, world.backbone, world.adapters)
    records = [
        json.loads(next(read_tar_records(evaluation.image_plan("adapters", subject).path))[1]["json"])
        for subject in (cup, cat)
    ]
    assert [record["reference_masked"] for record in records] == [True, False]

    pasted = MASKED.model_copy(update={"variants": ("copy-paste",)})
    again = world.evaluation(evaluation.folder, pasted, benchmark=benchmark, mask_stage=STAGE)
    embed_cases(again, world.embedders)
    rows, real = score_cases(again)
    assert rows[0]["masking"]["settings"]["real_masks"] == "the mask stage's where the benchmark has none"
    for found in (rows, real):
        assert {row["subject"] for row in found if row["mdino"] is None} == {"cat"} and len(found) in (16, 12)
    assert summarize(rows, real)["real_against_real"]["overall"]["mdino"]["count"] == 9


def test_masks_that_do_not_fit_are_named():
    image, mask = Image.new("RGB", (8, 6), "red"), io.BytesIO()
    Image.new("L", (8, 8), 255).save(mask, "PNG")
    with pytest.raises(ValueError, match="the mask is 8 x 8, its image 8 x 6"):
        subject_alone(image, mask.getvalue(), "white")
    empty = io.BytesIO()
    Image.new("L", (8, 6)).save(empty, "PNG")
    assert subject_alone(image, empty.getvalue(), "white") is None
    with pytest.raises(ValueError, match="the mask is not a readable image"):
        subject_alone(image, b"no image", "white")
    half = io.BytesIO()
    Image.fromarray(np.repeat(np.array([[128, 127]], np.uint8), 4, axis=1).repeat(6, axis=0)).save(half, "PNG")
    for background, value in (("white", 255), ("grey", 127), ("black", 0)):
        pixels = np.asarray(subject_alone(image, half.getvalue(), background))
        assert (pixels[:, :4] == (255, 0, 0)).all() and (pixels[:, 4:] == value).all()


def test_a_mask_that_does_not_fit_is_named_with_its_image(world, tmp_path):
    folder = shutil.copytree(world.benchmark.folder, tmp_path / "benchmark")
    benchmark, config = load_benchmark(folder), MASKED.model_copy(update={"variants": ("no-adapters",)})
    evaluation = world.evaluation(tmp_path / "evaluation", config, mask_stage=STAGE, benchmark=benchmark)
    cat = benchmark.by_name["cat"]
    for mask, message in (
        (b"no image", "the mask is not a readable image"),
        (None, "the mask is 10 x 10, its image 48"),
    ):
        if mask is None:
            Image.new("L", (10, 10), 255).save(folder / "cat/01.mask.png")
        else:
            (folder / "cat/01.mask.png").write_bytes(mask)
        with pytest.raises(ValueError, match=f"real image cat-01: {message}"):
            embed_shard(evaluation, "masked", None, cat, evaluation.masked_plan(None, cat), world.embedders)
    (folder / "cat/02.mask.png").write_bytes(b"no image")  # the reference's
    with pytest.raises(ValueError, match="cat/02.png: its mask is not a readable image"):
        generate_cases(world.evaluation(tmp_path / "e", benchmark=benchmark), world.backbone, world.adapters)


def test_dinov2_reads_224_pixels_of_a_table_for_518(tmp_path):
    dinov2 = load_dinov2(save_tiny_dinov2(tmp_path / "dinov2", image_size=518))
    assert dinov2.preprocess(Image.new("RGB", (60, 50))).shape == (3, 224, 224)
    pixels = dinov2.preprocess(Image.new("RGB", (60, 50), "red"))[None]
    with torch.inference_mode():
        token = dinov2.model(pixels, output_hidden_states=True).hidden_states[-1][0, 0]
        expected = torch.nn.functional.layer_norm(token, token.shape, eps=dinov2.model.config.layer_norm_eps)
    found = dinov2.embed_images([Image.new("RGB", (60, 50), "red")])[0]
    torch.testing.assert_close(found, expected / expected.norm(), atol=1e-5, rtol=0)
