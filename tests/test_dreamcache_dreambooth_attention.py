"""Where an evaluation's images look: from the subject as the mask stage found it, resumed, and of adapters alone."""

import io
import json

import pytest
from PIL import Image
from test_dreamcache_dreambooth_masked import STAGE, make_masks
from tiny_evaluation import CONFIG, World

from dreamcache.cache import cache_reference
from dreamcache.dreambooth.attention import attend_cases, middle
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.generation import generate_cases
from dreamcache.dreambooth.references import shown_reference
from dreamcache.sampling import sample_images
from shards.files import read_tar_records
from shards.verify import shard_faults

ADAPTERS = CONFIG.model_copy(update={"variants": ("adapters",), "masked_metrics": True})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def made(world, evaluation):
    """The records and pictures, by subject, after everything that is not up to date has been made."""
    make_masks(evaluation, real=True)
    generate_cases(evaluation, world.backbone, world.adapters)
    make_masks(evaluation, real=False)
    attend_cases(evaluation, world.backbone, world.adapters)
    found = {}
    for subject, plan in evaluation.attention_plans():
        ((_, parts),) = read_tar_records(plan.path)
        found[subject.name] = (
            json.loads(parts.pop("json")),
            {name: Image.open(io.BytesIO(parts[name])) for name in parts},
        )
    return found


def test_a_few_images_look_from_the_subjects_found_in_them(world, tmp_path):
    evaluation: Evaluation = world.evaluation(tmp_path, ADAPTERS, mask_stage=STAGE, attention=4)
    assert not any("attention" in plan.name for plan in world.evaluation(tmp_path, ADAPTERS, mask_stage=STAGE).plans())
    found = made(world, evaluation)
    assert list(found) == [subject.name for subject in evaluation.subjects]
    # The detector is unsure of cats: there one looks from the middle.
    assert {name: record["box"] for name, (record, _) in found.items() if record["box"]} == {"cat": list(middle(64))}
    for subject in evaluation.subjects:
        record, pictures = found[subject.name]
        case = evaluation.cases(subject)[0]
        assert (record["key"], record["prompt"], record["seed"]) == (case.key, case.prompt, case.seed)
        assert [layer["layer"] for layer in record["layers"]] == list(world.adapters.layers)
        assert all(0 < layer["attention"] < 1 and 0 < layer["area"] < 1 for layer in record["layers"])
        assert set(pictures) == {"generated.png", *(f"{layer}.png" for layer in world.adapters.layers)}
        # The region's edge is red, the rest the very image of this prompt and seed.
        reference = shown_reference(evaluation.reference("adapters", subject), world.backbone.image_size)
        cache = cache_reference(world.backbone, reference)
        (plain,) = sample_images(
            world.backbone, world.adapters, cache, [case.prompt], ADAPTERS.sampling, seeds=[case.seed]
        )
        generated = pictures["generated.png"]
        large = plain.resize(generated.size, Image.Resampling.BICUBIC)
        assert generated.getpixel((5, 5)) == large.getpixel((5, 5))
        assert generated.getpixel((128, 128)) == large.getpixel((128, 128))
        red = [x for x in range(128) if generated.getpixel((x, 128)) == (255, 0, 0)]
        assert red and all(abs(x - 64) <= 3 for x in red)


def test_only_what_is_not_up_to_date_is_made(world, tmp_path):
    evaluation = world.evaluation(tmp_path, ADAPTERS, mask_stage=STAGE, attention=2)
    made(world, evaluation)
    first, second = (plan.path for _, plan in evaluation.attention_plans())
    before = first.read_bytes(), first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    assert [line for line in evaluation.changes() if "attention" in line] == ["attention/00001: 00001.tar is gone"]
    made(world, evaluation)
    assert (first.read_bytes(), first.stat().st_mtime_ns, second.read_bytes()) == before
    assert shard_faults(tmp_path) == []
    stricter = ADAPTERS.model_copy(update={"min_box_score": 0.95})
    again = made(world, world.evaluation(tmp_path, stricter, mask_stage=STAGE, attention=2))
    assert all(record["box"] for record, _ in again.values())


def test_without_masks_one_looks_from_the_middle_and_without_adapters_not_at_all(world, tmp_path):
    unmasked = ADAPTERS.model_copy(update={"masked_metrics": False})
    ((record, _),) = made(world, world.evaluation(tmp_path, unmasked, attention=1)).values()
    assert record["box"] == list(middle(64))
    plain = CONFIG.model_copy(update={"variants": ("no-adapters",)})
    assert world.evaluation(tmp_path, plain, attention=4).attention_plans() == []
