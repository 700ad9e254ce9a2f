"""Attention maps: right weights, an image left as it is, shares by hand, files and the command."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_dreamcache_adapters import moved_adapters
from test_dreamcache_sampling import CONFIG, cutout
from tiny_diffusion import save_tiny_stable_diffusion
from typer.testing import CliRunner

from dreamcache.attention_maps import AttentionMaps, _attention_weights, sample_with_attention
from dreamcache.backbone import load_backbone
from dreamcache.cache import FeatureCache, cache_reference
from dreamcache.conditioning import conditioned
from dreamcache.sampling import sample_images
from flows.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_stable_diffusion(tmp_path_factory.mktemp("sd"), latent_size=16)


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(folder)


@pytest.fixture(scope="module")
def adapters(backbone):
    return moved_adapters(backbone.unet)


def test_weights_are_those_of_the_attention(backbone, adapters):
    cache = cache_reference(backbone, cutout("red"))
    layer = "up_blocks.2.attentions.0"
    with conditioned(backbone.unet, adapters, cache):
        stand_in = backbone.unet.get_submodule(layer).transformer_blocks[0].attn1
        query = torch.randn(5, 32)
        heads = query.view(5, stand_in.heads, -1).transpose(0, 1)
        identity = torch.eye(stand_in.keys.shape[2]).expand(stand_in.heads, -1, -1)
        by_head = F.scaled_dot_product_attention(heads, stand_in.keys[0], identity)
    torch.testing.assert_close(_attention_weights(stand_in, query), by_head.mean(dim=0))


@pytest.mark.parametrize("integration", ["spatial_concat", "textual_sum", "decoupled_blocks"])
def test_recording_leaves_the_image_and_the_unet_as_they_are(backbone, adapters, integration):
    if integration != "spatial_concat":
        adapters = moved_adapters(backbone.unet, integration=integration)
    red, blue = (cache_reference(backbone, cutout(colour)) for colour in ("red", "blue"))
    (plain,) = sample_images(backbone, adapters, red, ["a cat"], CONFIG, seeds=[3])
    image, maps = sample_with_attention(backbone, adapters, red, "a cat", CONFIG, seed=3)
    assert image == plain
    assert len(backbone.unet._forward_pre_hooks) == 0
    assert {layer: weights.shape for layer, weights in maps.weights.items()} == dict(
        zip(adapters.layers, ((2,) * 4, (4,) * 4, (8,) * 4, (8,) * 4, (16,) * 4), strict=True)
    )
    for weights in maps.weights.values():
        np.testing.assert_allclose(weights.sum(axis=(2, 3)), 1, rtol=1e-4)
    assert np.ptp(maps.weights[adapters.layers[-1]][0, 0]) > 0
    _, joined = sample_with_attention(backbone, adapters, FeatureCache.stack([red, blue]).joined(), "a cat", CONFIG)
    assert joined.weights["mid_block.attentions.0"].shape == (2, 2, 2, 4)
    with pytest.raises(ValueError, match="one subject, the cache holds 2"):
        sample_with_attention(backbone, adapters, FeatureCache.stack([red, blue]), "a cat", CONFIG)


def test_regions_and_shares_by_hand():
    # Pixels of the left half look at the reference's upper left quarter, those of the right half everywhere.
    weights = np.zeros((4, 4, 2, 2), dtype=np.float32)
    weights[:, :2, 0, 0] = 1
    weights[:, 2:] = 0.25
    maps = AttentionMaps({"layer": weights}, image_size=512)
    np.testing.assert_allclose(maps.seen_from((0, 0, 256, 512))["layer"], [[1, 0], [0, 0]])
    np.testing.assert_allclose(maps.seen_from((511, 511, 512, 512))["layer"], [[0.25] * 2] * 2)
    np.testing.assert_allclose(maps.seen_from((128, 0, 384, 128))["layer"], [[0.625, 0.125], [0.125, 0.125]])
    subject = Image.new("L", (64, 64), 0)
    subject.paste(255, (0, 0, 32, 32))
    assert maps.subject_shares((0, 0, 256, 512), [subject]) == {"layer": (1.0, 0.25)}
    assert maps.subject_shares((256, 0, 512, 512), [subject]) == {"layer": (0.25, 0.25)}
    right = Image.new("L", (512, 512), 0)
    right.paste(255, (256, 0, 512, 512))
    assert maps.subject_shares(right, [subject]) == {"layer": (0.25, 0.25)}
    for region, message in (
        ((0, 0, 513, 1), "outside the image"),
        ((5, 0, 5, 1), "is empty or outside"),
        (Image.new("L", (512, 512), 0), "marks no pixel"),
        (Image.new("L", (64, 64), 255), "mask is 64 x 64, the image 512"),
    ):
        with pytest.raises(ValueError, match=message):
            maps.seen_from(region)


def test_the_command_writes_image_maps_and_shares(folder, backbone, adapters, tmp_path):
    adapters.backbone_identity = backbone.identity
    adapters.save_pretrained(tmp_path / "adapters")
    cutout("red").save(tmp_path / "red.png")
    cutout("blue").save(tmp_path / "blue.png")
    arguments = [
        "attention-map", "--prompt", "a cat", "--out", str(tmp_path / "out"), "--adapters", str(tmp_path / "adapters"),
        "--reference", str(tmp_path / "red.png"), "--reference", str(tmp_path / "blue.png"),
        "--set", f"backbone={folder}", "--set", "evaluation.sampling.steps=2",
    ]  # fmt: skip
    done = CliRunner().invoke(app, [*arguments, "--box", "10,20,60,70"])
    assert done.exit_code == 0, done.output
    shares = [line.split() for line in done.stdout.splitlines() if "%" in line]
    assert [line[0] for line in shares] == list(adapters.layers)
    assert all(0 < float(value.rstrip("%")) < 100 for line in shares for value in line[1:])
    assert Image.open(tmp_path / "out" / "image.png").size == (128, 128)
    picture = Image.open(tmp_path / "out" / "maps.png")
    assert picture.width == 256 + 5 * 512 + 6 * 8 and picture.getpixel((20 + 2, 40)) == (255, 0, 0)
    saved = np.load(tmp_path / "out" / "maps.npz")
    assert saved["mid_block.attentions.0"].shape == (2, 4)
    assert saved["up_blocks.3.attentions.1"].sum() == pytest.approx(1, abs=1e-4)
    for box in ("10,20,60", "a,b", "10,20,600,70"):
        assert CliRunner().invoke(app, [*arguments, "--box", box]).exit_code == 1
    region = Image.new("L", (128, 128), 0)
    region.paste(255, (10, 20, 60, 70))
    region.save(tmp_path / "region.png")
    same = CliRunner().invoke(app, [*arguments, "--region", str(tmp_path / "region.png")])
    assert same.exit_code == 0 and same.stdout == done.stdout
    Image.new("L", cutout("red").size, 255).save(tmp_path / "all.png")
    masks = ["--mask", str(tmp_path / "all.png")] * 2
    masked = CliRunner().invoke(app, [*arguments, "--box", "10,20,60,70", *masks])
    assert masked.exit_code == 0 and masked.stdout != done.stdout
    either, each = "give either --box or --region", "there are 2 references and 1 masks: give --mask once for each"
    for wrong, said in (
        ([], either),
        (["--box", "1,1", "--region", str(tmp_path / "region.png")], either),
        (["--box", "1,1", *masks[:2]], each),
    ):
        done = CliRunner().invoke(app, [*arguments, *wrong])
        assert done.exit_code == 1 and said in done.output
