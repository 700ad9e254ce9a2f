"""An evaluation from sampled images to a summary, with tiny models: resumed, recomputed, and wrong input."""

import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load
from tiny_embedders import save_tiny_dino
from tiny_evaluation import CONFIG, World

from dreamcache.backbone import load_backbone
from dreamcache.cache import cache_reference
from dreamcache.configs import SamplingConfig
from dreamcache.dreambooth import generation
from dreamcache.dreambooth.config import EvaluationConfig
from dreamcache.dreambooth.embedders import load_dino
from dreamcache.dreambooth.generation import generate_cases
from dreamcache.dreambooth.rows import score_cases
from dreamcache.dreambooth.scoring import embed_cases, write_results
from dreamcache.dreambooth.summary import summarize
from dreamcache.reference import reference_image
from dreamcache.sampling import sample_images
from shards.files import read_tar_records
from shards.markers import read_marker

VARIANTS = ["no-adapters", "adapters", "wrong-reference", "copy-paste"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """An evaluation that has run, with its reports; not to be changed."""
    evaluation, reports = world.evaluation(tmp_path_factory.mktemp("run") / "evaluation"), []
    assert len(evaluation.changes()) >= 28 and world.run(evaluation, reports) == (12, 20)
    return evaluation, reports


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.tar")}


def test_images_are_those_of_the_cases(world, finished):
    evaluation, reports = finished
    assert reports[0] == {
        "stage": "images", "variant": "no-adapters", "subject": "cup_0", "done": 1, "total": 12, "made": True
    }  # fmt: skip
    assert reports[-1]["done"] == reports[-1]["total"] == 20
    cup = world.benchmark.by_name["cup_1"]
    cases = evaluation.cases(cup)
    assert [case.key for case in cases] == ["cup_1-00-0", "cup_1-01-0"]
    for variant, shown in (("no-adapters", None), ("adapters", cup), ("wrong-reference", world.benchmark.subjects[2])):
        cache = None
        if shown is not None:
            mask = Image.open(shown.mask(shown.reference))
            cache = cache_reference(world.backbone, reference_image(Image.open(shown.reference), mask, 64))
        expected = sample_images(
            world.backbone,
            world.adapters,
            cache,
            [c.prompt for c in cases],
            CONFIG.sampling,
            seeds=[c.seed for c in cases],
        )
        stored = dict(read_tar_records(evaluation.image_plan(variant, cup).path))
        for case, image in zip(cases, expected, strict=True):
            # Sampled beside other subjects' images, so the same up to rounding.
            found = np.asarray(Image.open(io.BytesIO(stored[case.key]["png"])), dtype=int)
            far = [np.abs(found - np.asarray(other, dtype=int)).max() for other in expected]
            assert np.abs(found - np.asarray(image, dtype=int)).max() <= 1 and sorted(far)[1] > 20
            record = json.loads(stored[case.key]["json"])
            assert record["reference"] == (None if shown is None else f"{shown.name}-00")
            assert record["seed"] == case.seed and record["reference_masked"] == (None if shown is None else True)


def test_rows_are_recomputed_from_files(world, finished):
    evaluation, _ = finished
    rows, real = score_cases(evaluation)
    assert len(rows) == 4 * 4 * 2 and len(real) == 4 * 3
    assert {row["variant"] for row in rows} == set(VARIANTS)
    row = next(row for row in rows if row["case"] == "cat-01-0" and row["variant"] == "adapters")
    case = evaluation.cases(world.benchmark.by_name["cat"])[1]
    assert (row["prompt"], row["seed"], row["live"], row["class"]) == (case.prompt, case.seed, True, "tabby cat")
    assert (
        row["models"] == world.models and row["protocol"] == "one-reference" and "8/7" in row["preprocessing"]["dino"]
    )
    stored = dict(read_tar_records(evaluation.folder / "images/adapters/00003.tar"))["cat-01-0"]
    image = Image.open(io.BytesIO(stored["png"]))
    reference = world.benchmark.by_name["cat"].reference
    dino = world.dino.embed_images([image, reference])
    clip = world.clip.embed_images([image, reference])
    text = world.clip.embed_prompts([case.prompt])
    assert row["dino"] == pytest.approx(float(dino[0] @ dino[1]), abs=1e-6)
    assert row["clip_i"] == pytest.approx(float(clip[0] @ clip[1]), abs=1e-6)
    assert row["clip_t"] == pytest.approx(float(clip[0] @ text[0]), abs=1e-6)
    pasted = [row for row in rows if row["variant"] == "copy-paste"]
    assert all(row["dino"] == pytest.approx(1) and row["clip_i"] == pytest.approx(1) for row in pasted)
    assert len({row["clip_t"] for row in pasted}) > 4 and "backbone" not in pasted[0]["models"]
    assert [row["palette_shared"] for row in pasted] == [True] * 4 + [False] * 4
    assert [row["palette_group"] for row in pasted] == ["red"] * 4 + [None] * 4
    embeddings = load(dict(read_tar_records(evaluation.folder / "embeddings/real/00003.tar"))["cat-02"]["safetensors"])
    np.testing.assert_allclose(embeddings["dino"], dino[1].numpy(), atol=1e-6)


def test_results_and_the_same_again_to_the_last_digit(finished):
    evaluation, _ = finished
    rows, real = score_cases(evaluation)
    write_results(evaluation.folder, rows, real, summarize(rows, real))
    first = {name: (evaluation.folder / name).read_bytes() for name in ("rows.jsonl", "real.jsonl", "summary.json")}
    stored, stored_real = (
        [json.loads(line) for line in first[name].splitlines()] for name in ("rows.jsonl", "real.jsonl")
    )
    assert stored == rows and stored_real == real
    write_results(evaluation.folder, *score_cases(evaluation), summarize(stored, stored_real))
    assert {name: (evaluation.folder / name).read_bytes() for name in first} == first
    summary = json.loads(first["summary.json"])
    assert list(summary["variants"]) == VARIANTS and len(summary["differences"]) == 4
    assert summary["real_against_real"]["overall"]["dino"]["count"] == 12


def test_nothing_is_done_twice_and_a_change_redoes_what_depends_on_it(world, finished, tmp_path):
    evaluation, _ = finished
    before = contents(evaluation.folder)
    assert evaluation.changes() == [] and world.run(evaluation) == (0, 0)
    assert contents(evaluation.folder) == before

    other = world.evaluation(evaluation.folder, models=world.models | {"adapters": "b" * 64})
    stages = {re.split("[.:]|/0", line)[0] for line in other.changes()}
    assert stages == {
        "images/adapters", "images/wrong-reference", "embeddings/adapters", "embeddings/wrong-reference"
    }, other.changes()  # fmt: skip
    assert any(line == f"images/adapters.models.adapters: {'a' * 12} -> {'b' * 12}" for line in other.changes())
    with pytest.raises(ValueError, match=r"input images/adapters/00000.tar is not finished"):
        score_cases(other)
    other = world.evaluation(evaluation.folder, CONFIG.model_copy(update={"protocol": "all-references"}))
    assert other.changes() == [], "another protocol needs no model"
    rows, _ = score_cases(other)
    assert {row["references"] for row in rows} == {3} and {row["protocol"] for row in rows} == {"all-references"}
    sampling = SamplingConfig(steps=2, image_guidance_scale=1.0)
    other = world.evaluation(evaluation.folder, CONFIG.model_copy(update={"sampling": sampling}))
    assert not any("no-adapters" in line for line in other.changes()), "it has no image guidance"
    rounded = world.evaluation(evaluation.folder, CONFIG.model_copy(update={"dtype": "bfloat16"}))
    assert 'images/no-adapters.dtype: "float32" -> "bfloat16"' in rounded.changes()
    more = world.evaluation(evaluation.folder, CONFIG.model_copy(update={"subjects": 2}))
    assert more.changes() == [], "fewer subjects need nothing new"
    with pytest.raises(ValueError, match="not embedded yet, or by other settings"):
        score_cases(world.evaluation(tmp_path / "empty"))


def test_a_killed_run_goes_on_where_it_was(world, finished, tmp_path, monkeypatch):
    evaluation = world.evaluation(tmp_path / "evaluation")
    shard, calls = generation._write_shard, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        shard(*args)

    monkeypatch.setattr(generation, "_write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        world.run(evaluation)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="images not sampled yet"):
        embed_cases(evaluation, world.embedders)
    torn = evaluation.folder / "images/no-adapters/00001.tar"
    torn.write_bytes(torn.read_bytes()[:-600])
    os.utime(torn)
    reports = []
    assert world.run(evaluation, reports)[0] == 11
    assert [report["made"] for report in reports[:3]] == [False, True, True]
    assert contents(evaluation.folder) == contents(finished[0].folder)


def test_an_image_is_the_same_to_the_last_bit_whichever_are_there_already(world, finished, tmp_path):
    folder, sampled = shutil.copytree(finished[0].folder, tmp_path / "evaluation"), []
    evaluation, path = world.evaluation(folder), "images/adapters/00002.tar"
    hook = world.backbone.unet.register_forward_pre_hook(lambda _, inputs: sampled.append(len(inputs[0])))
    try:
        for block in (None, range(2, 3)):
            (folder / path).unlink()
            assert generate_cases(replace(evaluation, block=block), world.backbone, world.adapters) == 1
            assert (folder / path).read_bytes() == (finished[0].folder / path).read_bytes()
    finally:
        hook.remove()
    # Four subjects of two images in three branches: as they were sampled first.
    assert max(sampled) == 24


def test_images_of_nothing_are_rejects(world, tmp_path):
    backbone = load_backbone(world.backbone.folder)
    backbone.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    config = CONFIG.model_copy(update={"variants": ("no-adapters",), "subjects": 1})
    evaluation = world.evaluation(tmp_path / "evaluation", config)
    generate_cases(evaluation, backbone, None)
    marker = read_marker(tmp_path / "evaluation/images/no-adapters/00000.tar")
    assert (marker.records_in, marker.records_out, marker.rejected) == (2, 0, {"image of one colour": 2})
    embed_cases(evaluation, world.embedders)
    assert score_cases(evaluation)[0] == []


def test_images_that_do_not_fit_together_are_sampled_in_smaller_batches(world, finished, tmp_path):
    config = CONFIG.model_copy(update={"variants": ("adapters",), "subjects": 1})
    evaluation = world.evaluation(tmp_path / "evaluation", config)

    def short_of_memory(unet, inputs):
        if len(inputs[0]) > 3:  # of one image there are three guidance branches
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = world.backbone.unet.register_forward_pre_hook(short_of_memory)
    try:
        generate_cases(evaluation, world.backbone, world.adapters)
    finally:
        hook.remove()
    path = Path("images/adapters/00000.tar")
    assert read_marker(evaluation.folder / path).execution["batch_size"] == 1
    together, alone = (dict(read_tar_records(folder / path)) for folder in (finished[0].folder, evaluation.folder))
    assert list(together) == list(alone) and len(alone) == 2
    for key, parts in alone.items():
        images = [np.asarray(Image.open(io.BytesIO(one["png"])), dtype=int) for one in (parts, together[key])]
        assert parts["json"] == together[key]["json"] and np.abs(images[0] - images[1]).max() <= 1


def test_an_evaluation_in_bfloat16_samples_images_near_those_in_float32(world, finished, tmp_path):
    evaluation = world.evaluation(tmp_path / "rounded", CONFIG.model_copy(update={"dtype": "bfloat16"}))
    backbone = load_backbone(world.folder / "stable-diffusion", dtype=torch.bfloat16)
    assert generate_cases(evaluation, backbone, world.adapters) == 12
    assert embed_cases(evaluation, world.embedders) == 20 and not any(plan.changes() for plan in evaluation.plans())
    path = Path("images/adapters/00001.tar")
    rounded, exact = (
        [np.asarray(Image.open(io.BytesIO(parts["png"])), dtype=int) for _, parts in read_tar_records(folder / path)]
        for folder in (evaluation.folder, finished[0].folder)
    )
    far = np.array([[np.abs(one - other).mean() for other in exact] for one in rounded])
    # of random weights rounding is felt, but each is by far the nearest to its own image in float32
    assert far.shape == (2, 2) and (far.diagonal() > 0).all() and (far.diagonal() < far[[0, 1], [1, 0]] / 3).all(), far


def test_wrong_models_are_named(world, tmp_path):
    evaluation = world.evaluation(tmp_path / "evaluation")
    with pytest.raises(ValueError, match="the variant adapters needs adapters"):
        generate_cases(evaluation, world.backbone, None)
    rounded = world.evaluation(tmp_path / "rounded", CONFIG.model_copy(update={"dtype": "bfloat16"}))
    with pytest.raises(ValueError, match=r"the backbone is in torch.float32, the evaluation's dtype is bfloat16"):
        generate_cases(rounded, world.backbone, world.adapters)
    with pytest.raises(ValueError, match="the dino model is"):
        embed_cases(evaluation, {"dino": load_dino(save_tiny_dino(tmp_path / "dino", seed=3)), "clip": world.clip})
    with pytest.raises(ValueError, match="variants"):
        EvaluationConfig(variants=("adaptors",))
