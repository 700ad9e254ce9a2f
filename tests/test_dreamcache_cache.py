"""Caches of several references and subjects, saved ones, and inputs that are wrong."""

import io

import pytest
import torch
from PIL import Image
from test_dreamcache_adapters import moved_adapters
from test_dreamcache_sampling import CONFIG, cutout, latents
from tiny_diffusion import save_tiny_stable_diffusion

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.cache import FeatureCache, cache_reference
from dreamcache.conditioning import conditioned
from dreamcache.reference import reference_image, reference_mask
from dreamcache.sampling import sample_images

MID = "mid_block.attentions.0"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(save_tiny_stable_diffusion(tmp_path_factory.mktemp("sd")))


@pytest.fixture(scope="module")
def adapters(backbone) -> AdapterSet:
    return moved_adapters(backbone.unet)


def test_joined_references_are_attended_to_together(backbone, adapters):
    red, blue = (cache_reference(backbone, cutout(colour)) for colour in ("red", "blue"))
    both = cache_reference(backbone, [cutout("red"), cutout("blue")]).joined()
    assert both.references == 1 and both.settings["joined"] == 2
    height, width = red.features[MID].shape[2:]
    assert both.features[MID].shape == (1, 32, height, 2 * width)
    torch.testing.assert_close(both.features[MID][..., :width], red.features[MID], rtol=1e-4, atol=1e-4)
    results = [latents(backbone, adapters, cache, ["a cat"], CONFIG, [1]) for cache in (both, red, blue)]
    assert not torch.allclose(results[0], results[1], atol=1e-3)
    assert not torch.allclose(results[0], results[2], atol=1e-3)
    # The order of references and a reference that comes twice change nothing.
    swapped = FeatureCache.stack([blue, red]).joined()
    torch.testing.assert_close(
        latents(backbone, adapters, swapped, ["a cat"], CONFIG, [1]), results[0], rtol=1e-3, atol=1e-3
    )
    twice = FeatureCache.stack([red, red]).joined()
    torch.testing.assert_close(
        latents(backbone, adapters, twice, ["a cat"], CONFIG, [1]), results[1], rtol=1e-3, atol=1e-3
    )
    assert FeatureCache.stack([both, both]).joined().settings["joined"] == 4


def test_subjects_of_different_numbers_of_references_share_a_batch(backbone, adapters):
    two = cache_reference(backbone, [cutout("red"), cutout("blue")]).joined()
    three = cache_reference(backbone, [cutout("green"), cutout("black"), cutout("pink")]).joined()
    stacked = FeatureCache.stack([two, three, three])
    assert stacked.references == 3 and stacked.settings["joined"] == 6
    prompts, seeds, strengths = ["a cat", "a dog", "a dog"], [1, 2, 2], [0.7, 1.0, 0.0]
    together = latents(backbone, adapters, stacked, prompts, CONFIG, seeds, strengths)
    alone = [
        latents(backbone, adapters, cache, prompts[i : i + 1], CONFIG, seeds[i : i + 1], strengths[i : i + 1])
        for i, cache in enumerate((two, three, None))
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-3)


def test_nothing_plain_is_made_of_a_conditioned_unet(backbone, adapters):
    cache = cache_reference(backbone, cutout("red"))
    with conditioned(backbone.unet, adapters, cache):
        for make in (
            lambda: cache_reference(backbone, cutout("blue")),
            lambda: sample_images(backbone, None, None, ["a cat"], CONFIG),
            lambda: conditioned(backbone.unet, adapters, cache).__enter__(),
        ):
            with pytest.raises(ValueError, match="leave the outer `conditioned` first"):
                make()


def test_text_and_timestep_of_the_cache_are_used_and_recorded(backbone):
    plain = cache_reference(backbone, cutout("red"), layers=[MID])
    late = cache_reference(backbone, cutout("red"), layers=[MID], timestep=300)
    told = cache_reference(backbone, [cutout("red")] * 2, layers=[MID], prompt=["a cat", ""])
    assert late.settings["timestep"] == 300 and told.settings["prompt"] == ["a cat", ""]
    assert not torch.allclose(late.features[MID], plain.features[MID], atol=1e-3)
    assert not torch.allclose(told.features[MID][:1], plain.features[MID], atol=1e-5)
    torch.testing.assert_close(told.features[MID][1:], plain.features[MID], rtol=1e-4, atol=1e-4)
    others = (
        late,
        told,
        FeatureCache(plain.features, "0" * 64, plain.settings),
        FeatureCache({MID: plain.features[MID].repeat(1, 1, 2, 2)}, backbone.identity, plain.settings),
        FeatureCache({"down_blocks.0.attentions.1": plain.features[MID]}, backbone.identity, plain.settings),
    )
    for other in others:
        with pytest.raises(ValueError, match="different backbones, layers, timesteps or image sizes"):
            FeatureCache.stack([plain, other])
    assert set(cache_reference(backbone, cutout("red"), layers=("mid",)).features) == {MID}


def test_a_saved_cache_of_another_backbone_is_refused(backbone, adapters, tmp_path):
    other = load_backbone(save_tiny_stable_diffusion(tmp_path / "other", seed=1))
    cache_reference(other, cutout("red")).save(tmp_path / "red.safetensors")
    foreign = FeatureCache.load(tmp_path / "red.safetensors")
    with pytest.raises(ValueError, match="another backbone than .*: cache it again"):
        sample_images(backbone, adapters, foreign, ["a"], CONFIG)
    own = AdapterSet.for_unet(backbone.unet, backbone_identity=backbone.identity)
    with (
        pytest.raises(ValueError, match="another backbone than the adapters"),
        conditioned(backbone.unet, own, foreign),
    ):
        pass
    assert list(tmp_path.glob("*red*")) == [tmp_path / "red.safetensors"]
    with pytest.raises(FileNotFoundError, match="no feature cache at"):
        FeatureCache.load(tmp_path / "blue.safetensors")
    own.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no feature cache"):
        FeatureCache.load(tmp_path / "adapters.safetensors")


def test_wrong_references_are_named(backbone):
    transparent = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    for reference, options, message in (
        (transparent, {}, "no subject"),
        ([], {}, "at least one"),
        ("cat.png", {}, "PIL.Image.open"),
        (torch.zeros(3, 64, 64), {}, r"\(R, 3, H, W\), not \(3, 64, 64\)"),
        (torch.zeros(0, 3, 64, 64), {}, r"\(R, 3, H, W\), not \(0, 3, 64, 64\)"),
        (cutout("red"), {"layers": ["mid_block.attention.0"]}, "no spatial transformer 'mid_block.attention.0'"),
        (cutout("red"), {"layers": []}, "no layer of the U-Net"),
        (cutout("red"), {"timestep": 1000}, "timestep is 1000; the backbone has 0 to 999"),
        (cutout("red"), {"timestep": -1}, "timestep is -1; the backbone has 0 to 999"),
        (cutout("red"), {"prompt": ["a", "b"]}, "1 references need one prompt or as many, not 2"),
    ):
        with pytest.raises(ValueError, match=message):
            cache_reference(backbone, reference, **options)
    with pytest.raises(ValueError, match="prompts are a list"):
        sample_images(backbone, None, None, "a cat", CONFIG)


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "1 pixel"])
def test_unusual_references_work(backbone, mode):
    image = Image.new("RGB", (1, 1) if mode == "1 pixel" else (32, 32), "gray")
    image = image.convert(mode) if mode == "CMYK" else image.convert("I").convert("I;16") if mode == "I;16" else image
    assert cache_reference(backbone, image, layers=[MID]).features[MID].isfinite().all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_truncated_files_are_named(format):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, format)
    torn = Image.open(io.BytesIO(buffer.getvalue()[: len(buffer.getvalue()) // 2])) if format != "TIFF" else None
    if torn is None:  # a TIFF's directory stands at its end, so a torn one does not even open
        whole = Image.open(buffer)
        buffer.truncate(4000)
        torn = whole
    with pytest.raises(ValueError, match="the reference cannot be read .*: save the image again"):
        reference_image(torn, size=16)


def test_the_reference_mask_lies_where_the_subject_does():
    image = cutout("red")
    mask, reference = reference_mask(image, size=64), reference_image(image, size=64)
    assert mask.mode == "L" and mask.size == (64, 64) and mask.getbbox() == reference_mask(reference, size=64).getbbox()
    assert (mask.getpixel((32, 32)), mask.getpixel((1, 1))) == (255, 0)
