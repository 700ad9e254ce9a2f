import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
)
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from test_dreamcache_adapters import moved_adapters
from tiny_diffusion import save_tiny_stable_diffusion

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.cache import FeatureCache, cache_reference
from dreamcache.conditioning import conditioned
from dreamcache.configs import SamplingConfig
from dreamcache.sampling import sample_images, sample_latents

CONFIG = SamplingConfig(steps=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(folder)


@pytest.fixture(scope="module")
def adapters(backbone) -> AdapterSet:
    return moved_adapters(backbone.unet)


def cutout(colour: str) -> Image.Image:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((10, 20, 50, 60), fill=colour)
    return image


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def latents(backbone, adapters, cache, prompts, config, seeds, strengths=None, **others):
    return sample_latents(
        backbone, adapters, cache, prompts, config, seeds=seeds, strengths=strengths or [1.0] * len(prompts), **others
    )


@pytest.mark.parametrize(
    "scheduler_class",
    [DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler],
)
def test_plain_sampling_equals_the_diffusers_pipeline(folder, backbone, scheduler_class):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    prompts, seeds = ["a cat", "a red car"], [3, 4]
    theirs = pipeline(
        prompts, num_inference_steps=3, guidance_scale=7.5, output_type="latent", eta=0.3,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images  # fmt: skip
    config, scheduler = SamplingConfig(steps=3, eta=0.3), scheduler_class.from_config(backbone.scheduler.config)
    ours = latents(backbone, None, None, prompts, config, seeds, scheduler=scheduler)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if scheduler_class is DDIMScheduler:  # eta is its alone
        assert not torch.allclose(latents(backbone, None, None, prompts, CONFIG, seeds), theirs, atol=1e-2)


@pytest.mark.parametrize("guidance", ["combined", "joint"])
def test_guidance_is_the_papers_formula(backbone, adapters, guidance):
    config = SamplingConfig(steps=1, guidance=guidance, guidance_scale=3.0, image_guidance_scale=0.7)
    cache = cache_reference(backbone, cutout("red"))
    scheduler = DDIMScheduler.from_config(backbone.scheduler.config)
    scheduler.set_timesteps(1)
    noise = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(9))

    @torch.no_grad()
    def e(image: int, text: str) -> torch.Tensor:
        with conditioned(backbone.unet, adapters, cache, float(image)):
            return backbone.unet(noise, scheduler.timesteps[0], backbone.encode_prompts([text])).sample

    if guidance == "joint":
        prediction = e(0, "") + 3.0 * (e(1, "a cat") - e(0, ""))
    else:
        prediction = e(0, "") + 0.7 * (e(1, "") - e(0, "")) + 3.0 * (e(1, "a cat") - e(1, ""))
    expected = scheduler.step(prediction, scheduler.timesteps[0], noise).prev_sample
    torch.testing.assert_close(
        latents(backbone, adapters, cache, ["a cat"], config, [9]), expected, rtol=1e-4, atol=1e-4
    )


def test_fresh_adapters_and_strength_zero_give_the_plain_image(backbone, adapters):
    cache = cache_reference(backbone, cutout("red"))
    plain = sample_images(backbone, None, None, ["a cat"], CONFIG)[0]
    # The branches differ in number, so the batches do, and with them the last bits before rounding to 8 bits.
    fresh = sample_images(backbone, AdapterSet.for_unet(backbone.unet), cache, ["a cat"], CONFIG)[0]
    off = sample_images(backbone, adapters, cache, ["a cat"], CONFIG, strength=0.0)[0]
    assert difference(plain, fresh) <= 1 and difference(plain, off) <= 1
    assert difference(plain, sample_images(backbone, adapters, cache, ["a cat"], CONFIG)[0]) > 1


def test_subjects_and_plain_rows_share_a_batch(backbone, adapters):
    caches = [cache_reference(backbone, cutout(colour)) for colour in ("red", "blue", "red")]
    prompts, seeds, strengths = ["a cat", "a dog", "a cat"], [1, 2, 1], [1.0, 0.5, 0.0]
    together = latents(backbone, adapters, FeatureCache.stack(caches), prompts, CONFIG, seeds, strengths)
    for row in range(3):
        alone = latents(
            backbone, adapters, caches[row], prompts[row : row + 1], CONFIG, seeds[row : row + 1],
            strengths[row : row + 1],
        )  # fmt: skip
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-3)


def test_batches_and_progress(backbone, adapters):
    cache = cache_reference(backbone, [cutout("red"), cutout("blue"), cutout("green")])
    seen: list[tuple[int, int]] = []
    prompts, strength = ["a", "b", "c"], [1.0, 1.0, 0.0]
    small = sample_images(
        backbone, adapters, cache, prompts, CONFIG, strength=strength, batch_size=2,
        progress=lambda *step: seen.append(step),
    )  # fmt: skip
    large = sample_images(backbone, adapters, cache, prompts, CONFIG, strength=strength)
    assert max(map(difference, small, large)) <= 1
    pixels = backbone.decode_latents(latents(backbone, adapters, cache, prompts, CONFIG, [0, 1, 2], strength)) * 255
    shown = torch.from_numpy(np.stack([np.asarray(image) for image in large])).permute(0, 3, 1, 2)
    assert (shown - pixels).abs().max() <= 0.5 + 1e-3, "rounded to the nearest value"
    assert seen == [(step, 6) for step in range(1, 7)]
    assert small[0].size == (64, 64) and small[0].mode == "RGB"


@pytest.mark.parametrize("scheduler_class", [DPMSolverMultistepScheduler, LCMScheduler])
def test_any_scheduler(backbone, adapters, scheduler_class):
    scheduler = scheduler_class.from_config(backbone.scheduler.config)
    cache = cache_reference(backbone, cutout("red"))
    one = latents(backbone, adapters, cache, ["a cat"] * 2, CONFIG, [5, 6], scheduler=scheduler)
    two = latents(backbone, adapters, cache, ["a cat"], CONFIG, [6], scheduler=scheduler)
    assert one.isfinite().all()
    torch.testing.assert_close(one[1:], two, rtol=1e-3, atol=1e-3)


def test_cache_is_seeded_batched_and_saved(backbone, tmp_path):
    both = cache_reference(backbone, [cutout("red"), cutout("blue")])
    red = cache_reference(backbone, cutout("red"))
    for layer, features in both.features.items():
        torch.testing.assert_close(features[:1], red.features[layer], rtol=1e-4, atol=1e-4)
    other_noise = cache_reference(backbone, cutout("red"), seed=1)
    assert not torch.equal(other_noise.features["mid_block.attentions.0"], red.features["mid_block.attentions.0"])
    red.save(tmp_path / "red.safetensors")
    loaded = FeatureCache.load(tmp_path / "red.safetensors")
    assert loaded.backbone_identity == backbone.identity and loaded.settings == red.settings
    assert list(loaded.features) == sorted(red.features) or set(loaded.features) == set(red.features)
    assert all(torch.equal(tensor, red.features[layer]) for layer, tensor in loaded.features.items())
    (tmp_path / "red.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="no feature cache"):
        FeatureCache.load(tmp_path / "red.safetensors")


def test_caching_stops_after_the_last_layer(backbone):
    ran = []
    hook = backbone.unet.conv_out.register_forward_pre_hook(lambda *_: ran.append("end"))
    cache_reference(backbone, cutout("red"))
    hook.remove()
    assert ran == []


def test_wrong_inputs_are_named(backbone, adapters, tmp_path):
    cache = cache_reference(backbone, [cutout("red"), cutout("blue")])
    with pytest.raises(ValueError, match="3 prompts need as many seeds"):
        sample_images(backbone, None, None, ["a", "b", "c"], CONFIG, seeds=[1])
    with pytest.raises(ValueError, match="2 references for 3 prompts"):
        sample_images(backbone, adapters, cache, ["a", "b", "c"], CONFIG)
    foreign = FeatureCache(cache.features, "0" * 64)
    with pytest.raises(ValueError, match="another backbone"):
        sample_images(backbone, adapters, foreign, ["a", "b"], CONFIG)
    others = AdapterSet.for_unet(backbone.unet, backbone_identity="0" * 64)
    with pytest.raises(ValueError, match="these adapters belong to the backbone 000000000000"):
        sample_images(backbone, others, None, ["a", "b"], CONFIG)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not -1"):
        sample_images(backbone, adapters, None, ["a"], CONFIG, batch_size=-1)
    with pytest.raises(FileNotFoundError, match=r"local folder in diffusers' layout.*https://huggingface.co.*HF_TOKEN"):
        load_backbone(tmp_path / "nothing")


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/config.json", "tokenizer"])
def test_an_incomplete_or_torn_folder_is_named(folder, tmp_path, part):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    if part.endswith("safetensors"):
        (broken / part).write_bytes((broken / part).read_bytes()[:1000])
    else:
        shutil.move(broken / part, tmp_path / "away")
    with pytest.raises(ValueError, match="is no complete Stable Diffusion"):
        load_backbone(broken)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_lack_a_tensor_are_refused(folder, tmp_path, part):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (file,) = (broken / part).glob("*.safetensors")
    tensors = load_file(file)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{part} lacks the weights"):
        load_backbone(broken)


def test_a_missing_hub_model_names_page_token_and_folder(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"huggingface.co/nobody/nothing.*HF_TOKEN.*local folder"):
        load_backbone("nobody/nothing")


def test_identity_is_of_the_weights_not_the_place(folder, backbone, tmp_path):
    copy = load_backbone(save_tiny_stable_diffusion(tmp_path / "copy"))
    other = load_backbone(save_tiny_stable_diffusion(tmp_path / "other", seed=7))
    assert copy.identity == backbone.identity != other.identity
