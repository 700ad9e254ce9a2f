"""The pipeline as a diffusers user takes it up: load, call, save, share."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from test_dreamcache_adapters import moved_adapters
from test_dreamcache_released import released_tensors
from test_dreamcache_sampling import cutout
from tiny_diffusion import save_tiny_stable_diffusion

from dreamcache import AdapterSet, DreamCachePipeline, SamplingConfig, load_backbone, sample_images
from dreamcache.cache import FeatureCache, cache_reference
from dreamcache.sampling import ddim_scheduler
from shards.hub import hub_commit, hub_folder, keep_commit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def adapters(folder, tmp_path_factory):
    backbone = load_backbone(folder)
    adapters = moved_adapters(backbone.unet)
    adapters.backbone_identity = backbone.identity
    adapters.save_pretrained(tmp_path_factory.mktemp("adapters"))
    return adapters


@pytest.fixture(scope="module")
def saved(folder, adapters, tmp_path_factory):
    return DreamCachePipeline(load_backbone(folder), adapters), tmp_path_factory.mktemp("saved")


def test_three_lines_give_what_sample_images_gives(folder, adapters, tmp_path):
    adapters.save_pretrained(tmp_path)
    pipeline = DreamCachePipeline.from_pretrained(folder, adapters=tmp_path).to("cpu")
    images = pipeline("a cat", reference=cutout("red"), num_inference_steps=2, num_images_per_prompt=2).images
    backbone = load_backbone(folder)
    cache = cache_reference(backbone, cutout("red"))
    assert images == sample_images(backbone, adapters, cache, ["a cat"] * 2, SamplingConfig(steps=2))
    joined = pipeline("a cat", [cutout("red"), cutout("blue")], num_inference_steps=2).images
    assert len(joined) == 1 and joined[0] != images[0]


def test_subjects_schedulers_and_a_negative_prompt(saved):
    pipeline, _ = saved
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    caches = FeatureCache.stack([pipeline.cache(cutout(colour)) for colour in ("red", "blue")])
    prompts = ["a cat", "a dog"]
    images = pipeline(prompts, caches, num_inference_steps=2, num_images_per_prompt=2, negative_prompt="blurred").images
    config = SamplingConfig(steps=2, negative_prompt="blurred")
    expected = sample_images(
        pipeline.backbone, pipeline.adapters, caches.select([0, 0, 1, 1]), ["a cat", "a cat", "a dog", "a dog"], config,
        scheduler=pipeline.scheduler,
    )  # fmt: skip
    assert images == expected
    without = pipeline(prompts, caches, num_inference_steps=2, num_images_per_prompt=2).images
    assert without != images
    with pytest.raises(ValueError, match="num_images_per_prompt must be at least 1"):
        pipeline(prompts, caches, num_images_per_prompt=0)
    for given, held in ((["a cat"], caches), (prompts, caches.select([0, 0, 1, 1]))):
        with pytest.raises(ValueError, match=f"holds {held.references} subjects for {len(given)} prompts"):
            pipeline(given, held, num_inference_steps=2, num_images_per_prompt=2)


def test_a_call_s_settings_are_those_of_sample_images(saved):
    backbone, adapters = saved[0].backbone, saved[0].adapters
    pipeline, seen = DreamCachePipeline(backbone, adapters), []
    cache, expected = pipeline.cache(cutout("red"), seed=4), cache_reference(backbone, cutout("red"), seed=4)
    assert all(torch.equal(features, expected.features[layer]) for layer, features in cache.features.items())
    images = pipeline(
        "a cat", cache, num_inference_steps=2, guidance_scale=3.0, image_guidance_scale=1.5, eta=0.4, strength=0.5,
        num_images_per_prompt=3, seed=7, batch_size=2, progress=lambda *step: seen.append(step),
    ).images  # fmt: skip
    config = SamplingConfig(steps=2, guidance_scale=3.0, image_guidance_scale=1.5, eta=0.4)
    arguments = (backbone, adapters, cache, ["a cat"] * 3, config)
    assert images == sample_images(*arguments, seeds=[7, 8, 9], strength=0.5, batch_size=2)
    assert seen == [(step, 4) for step in range(1, 5)]
    joint = sample_images(backbone, adapters, cache, ["a cat"], SamplingConfig(steps=2, guidance="joint"))
    assert pipeline("a cat", cache, num_inference_steps=2, guidance="joint").images == joint


def test_an_image_scale_is_not_passed_over(saved):
    pipeline, _ = saved
    with pytest.raises(ValueError, match="joint guidance has one scale"):
        pipeline("a cat", cutout("red"), num_inference_steps=2, guidance="joint", image_guidance_scale=1.0)


def test_more_steps_than_timesteps_are_too_many(saved):
    pipeline, _ = saved
    with pytest.raises(ValueError, match="1000 steps are too many for a backbone of 1000 timesteps"):
        pipeline("a cat", cutout("red"), num_inference_steps=1000)


def test_seeds_of_numpy_are_seeds(saved):
    backbone, adapters = saved[0].backbone, saved[0].adapters
    cache = cache_reference(backbone, cutout("red"), seed=np.int64(3))
    config = SamplingConfig(steps=1)
    images = sample_images(backbone, adapters, cache, ["a cat"] * 2, config, seeds=np.arange(2))
    assert images == sample_images(backbone, adapters, cache, ["a cat"] * 2, config, seeds=[0, 1])


def test_a_backbone_that_was_named_from_here_is_found_from_elsewhere(folder, adapters, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    DreamCachePipeline(load_backbone(folder.name), adapters).save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    assert DreamCachePipeline.from_pretrained("saved").backbone.identity == adapters.backbone_identity


def test_adapters_that_read_the_noun_are_given_it(folder, tmp_path):
    backbone = load_backbone(folder)
    with pytest.raises(ValueError, match="{subject} alone may stand in braces"):
        AdapterSet.for_unet(backbone.unet, cache_prompt="a photo of a {noun}")
    adapters = moved_adapters(backbone.unet, cache_prompt="a photo of a {subject}")
    pipeline = DreamCachePipeline(backbone, adapters)
    pipeline.save_pretrained(tmp_path)
    assert 'reference=cutout, subject="teapot").images' in (tmp_path / "README.md").read_text()
    with pytest.raises(ValueError, match="these adapters read the subject's noun"):
        pipeline("a cat on a beach", cutout("red"), num_inference_steps=2)
    cache = pipeline.cache(cutout("red"), subject="cat")
    images = pipeline("a cat on a beach", cutout("red"), subject="cat", num_inference_steps=2).images
    assert images == pipeline("a cat on a beach", cache, num_inference_steps=2).images
    assert images != pipeline("a cat on a beach", cutout("red"), subject="dog", num_inference_steps=2).images


def test_a_scheduler_that_says_little_is_read_as_stable_diffusions(folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "sd")
    file = bare / "scheduler" / "scheduler_config.json"
    known = json.loads(file.read_text())
    kept = ("_class_name", "beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type")
    file.write_text(json.dumps({name: known[name] for name in kept}))
    config = ddim_scheduler(load_backbone(bare)).config
    assert (config["clip_sample"], config["steps_offset"]) == (False, 1)


def test_files_of_the_hub_are_taken_at_the_commit_that_is_here(tmp_path, monkeypatch):
    def snapshot_download(name, revision, allow_patterns):
        return str(tmp_path / name / revision)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--you--adapters" / "refs").mkdir(parents=True)
    (tmp_path / "models--you--adapters" / "refs" / "main").write_text("0123abc")
    assert hub_folder("you/adapters", ("*",)) == tmp_path / "you/adapters" / "0123abc"


def test_saved_pipelines_load_and_carry_a_model_card(saved, folder):
    pipeline, target = saved
    pipeline.save_pretrained(target)
    loaded = DreamCachePipeline.from_pretrained(target)
    assert loaded.backbone.identity == pipeline.backbone.identity
    tensors = loaded.adapters.tensors()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in pipeline.adapters.tensors().items())
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlibrary_name") and "base_model" not in card
    for part in ("spatial concat", "`mid_block.attentions.0`", pipeline.backbone.identity, "with null text"):
        assert part in card


def test_pushing_needs_a_public_backbone_and_uploads_what_loads(saved, folder, tmp_path, monkeypatch):
    pipeline, _ = saved
    with pytest.raises(ValueError, match="say backbone=NAME"):
        pipeline.push_to_hub("me/adapters")
    calls = []

    def create_repo(self, name, private, exist_ok):
        calls.append((name, private))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, tmp_path / "hub")
        return SimpleNamespace(oid="0123abc")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    keep_commit("me/adapters", "of before")
    assert pipeline.push_to_hub("me/adapters", "you/sd", private=True) == "https://huggingface.co/me/adapters"
    assert calls == [("me/adapters", True)]
    assert "base_model: you/sd\n" in (tmp_path / "hub" / "README.md").read_text()
    assert json.loads((tmp_path / "hub" / "pipeline.json").read_text()) == {"backbone": "you/sd"}
    assert hub_commit("me/adapters") == "0123abc"
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "hub"))
    assert AdapterSet.from_pretrained("me/adapters").backbone_identity == pipeline.backbone.identity
    DreamCachePipeline.from_pretrained(folder, adapters="me/adapters")


def test_released_and_wrong_adapters(saved, folder, adapters, tmp_path):
    torch.save(released_tensors(adapters), tmp_path / "cross_attention-1.pt")
    released = DreamCachePipeline.from_pretrained(folder, adapters=tmp_path / "cross_attention-1.pt")
    assert torch.equal(released.adapters.tensors()["mid_block.attentions.0.to_q.weight"],
                       adapters.tensors()["mid_block.attentions.0.to_q.weight"])  # fmt: skip
    adapters.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="does not name its backbone: from_pretrained"):
        DreamCachePipeline.from_pretrained(tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match="no adapters in .*: config.json is missing"):
        DreamCachePipeline.from_pretrained(folder)
    other = load_backbone(save_tiny_stable_diffusion(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="belong to the backbone"):
        DreamCachePipeline(other, adapters)
