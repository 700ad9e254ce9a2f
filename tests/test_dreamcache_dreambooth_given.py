"""Images from a folder: scored exactly as sampled ones are, and what is wrong with a folder named in one line."""

import io
import shutil

import pytest
from PIL import Image
from tiny_embedders import write_tiny_benchmark
from tiny_evaluation import CONFIG, World

from dreamcache.dreambooth.cases import load_benchmark
from dreamcache.dreambooth.given import given_images
from dreamcache.dreambooth.published import published_real_scores
from dreamcache.dreambooth.rows import score_cases
from dreamcache.dreambooth.scoring import embed_cases
from dreamcache.dreambooth.summary import calibrate, compare
from shards.files import read_tar_records


@pytest.fixture
def cases(tmp_path):
    benchmark = load_benchmark(write_tiny_benchmark(tmp_path / "benchmark"))
    return benchmark.cases(images_per_prompt=2, prompts=2)


@pytest.fixture
def folder(cases, tmp_path):
    for case in cases:
        path = tmp_path / "images" / case.subject / f"{case.prompt_index:02d}-{case.position}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(path)
    return tmp_path / "images"


def test_a_run_s_own_images_score_the_same_from_a_folder(tmp_path):
    world = World(tmp_path)
    config = CONFIG.model_copy(update={"variants": ("no-adapters",)})
    evaluation = world.evaluation(tmp_path / "evaluation", config)
    world.run(evaluation)
    for _, subject, plan in evaluation.image_plans():
        (tmp_path / "copied" / subject.name).mkdir(parents=True)
        for case, (_, parts) in zip(evaluation.cases(subject), read_tar_records(plan.path), strict=True):
            place = tmp_path / "copied" / subject.name / f"{case.prompt_index:02d}-{case.position}.png"
            place.write_bytes(parts["png"])
    given = given_images(
        tmp_path / "copied", [case for subject in evaluation.subjects for case in evaluation.cases(subject)]
    )
    config = CONFIG.model_copy(update={"variants": ("given",)})
    models = {name: world.models[name] for name in ("dino", "clip")}
    again = world.evaluation(tmp_path / "given", config, given=given, models=models)
    embed_cases(again, world.embedders)
    (own, real), (rows, _) = score_cases(evaluation), score_cases(again)
    for metric in ("dino", "clip_i", "clip_t"):
        assert [row[metric] for row in rows] == [row[metric] for row in own]
    difference = compare(rows, own)["overall"]["dino"]
    assert (difference["mean"], difference["low"], difference["count"]) == (0, 0, 8)
    given["cat-00-0"].write_bytes(given["cat-01-0"].read_bytes())
    assert any("embeddings/given" in line and "cat-00-0" in line for line in again.changes())

    nothing = world.evaluation(tmp_path / "real", CONFIG.model_copy(update={"variants": ()}), models=models)
    embed_cases(nothing, world.embedders)
    assert score_cases(nothing) == ([], real)
    found = calibrate(real)
    assert found["metrics"]["dino"]["count"] == 12 and set(found["subjects"]) == {"cup_0", "cup_1", "cup_2", "cat"}
    by_subject = [found["subjects"][name]["dino"] for name in found["subjects"]]
    assert found["metrics"]["dino"]["subject_mean"] == pytest.approx(sum(by_subject) / 4)
    with pytest.raises(ValueError, match="no subject has two real images"):
        calibrate([])
    dino, clip = tmp_path / "dino", tmp_path / "clip"
    assert published_real_scores("tiny", dino, clip) == published_real_scores("dreambooth", dino, clip) == {}
    (dino / "config.json").write_text(
        '{"model_type": "vit", "hidden_size": 384, "num_hidden_layers": 12, "patch_size": 16, "image_size": 224}'
    )
    assert published_real_scores("dreambooth", dino, clip) == {"dino": 0.774}


def test_whatever_is_wrong_with_a_folder_is_named(cases, folder, tmp_path, monkeypatch):
    assert len(given_images(folder, cases)) == len(cases) == 16
    (folder / "cat/00-0.png").rename(folder / "cat/00-0.jpg")
    assert given_images(folder, cases)["cat-00-0"] == folder / "cat/00-0.jpg"

    def refused(error, message):
        with pytest.raises(error, match=message) as caught:
            given_images(folder, cases)
        assert "\n" not in str(caught.value)

    shutil.copy(folder / "cat/00-0.jpg", folder / "cat/00-0.png")
    refused(ValueError, "two images of one case, 00-0.jpg and 00-0.png in cat")
    (folder / "cat/00-0.png").unlink()
    shutil.copy(folder / "cat/00-0.jpg", folder / "cat/00-2.png")
    refused(ValueError, "1 images too many, such as cat/00-2.png; 16 are asked for")
    (folder / "cat/00-2.png").unlink()
    content = io.BytesIO()
    Image.new("RGB", (30, 20)).save(content, "PNG")
    (folder / "cat/00-0.jpg").write_bytes(content.getvalue())
    refused(ValueError, "images of different sizes: 15 are 20 x 20, not so cat/00-0.jpg 30 x 20")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(ValueError, r"cat/00-0.jpg: not a readable image \(Image size \(600 pixels\) exceeds limit")
    monkeypatch.undo()
    (folder / "cat/00-0.jpg").write_bytes(b"no image")
    refused(ValueError, "cat/00-0.jpg: not a readable image")
    (folder / "cat/00-0.jpg").unlink()
    refused(FileNotFoundError, "1 images missing, such as cat/00-0; 16 are asked for, 4 subjects")
    shutil.rmtree(folder / "cup_1")
    refused(FileNotFoundError, "1 of 4 subjects' folders missing: cup_1")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        given_images(tmp_path / "nowhere", cases)
