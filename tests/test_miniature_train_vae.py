"""The autoencoder: latents and images are changed alike; on whole scenes latents stay near what they were."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from miniature.train import vae_whole
from miniature.train.data import Pool
from miniature.train.vae import FOLDER, MOST_NOISE, changed_alike, load
from miniature.train.workspace import CHECKPOINTS, Workspace


def test_latents_and_images_are_made_smaller_and_mirrored_alike() -> None:
    smooth = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 20
    latents, images = (nn.functional.interpolate(smooth, size=size, mode="bicubic") for size in (16, 128))
    sizes, mirrored = set(), set()
    for seed in range(40):
        changed, shown = changed_alike(latents, images, torch.Generator().manual_seed(seed))
        size = changed.shape[-1]
        assert changed.shape == (6, 3, size, size) and shown.shape == (6, 3, 8 * size, 8 * size)
        assert 8 <= size <= 16
        difference = changed - nn.functional.interpolate(shown, size=size, mode="bilinear", antialias=True)
        assert difference.square().mean().sqrt() < 2 * MOST_NOISE
        mirror = nn.functional.interpolate(images.flip(-1), size=shown.shape[-1], mode="bilinear", antialias=True)
        sizes.add(size)
        mirrored.add(bool((shown - mirror).abs().mean() < 0.1))
        assert size < 16 or (shown - images).abs().mean() > 0.1
    assert sizes == set(range(8, 17)) and mirrored == {False, True}


def test_latents_are_noisy_by_different_amounts_and_images_are_not() -> None:
    changed, shown = changed_alike(torch.zeros(64, 12, 16, 16), torch.zeros(64, 3, 128, 128), torch.Generator())
    amounts = changed.flatten(1).std(1)
    assert not shown.any()
    assert amounts.max() < 1.1 * MOST_NOISE and amounts.mean() == pytest.approx(MOST_NOISE / 2, rel=0.3)
    assert amounts.std() > 0.15 * MOST_NOISE


@pytest.fixture
def few(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """Fewer scenes of the pool, in smaller batches."""
    monkeypatch.setattr(vae_whole, "BATCH", 2)
    scenes = Pool(pool.folder)
    scenes.scenes = pool.scenes[:8]
    return scenes


def test_the_finished_autoencoder_learns_on_and_latents_stay_near(few: Pool, tmp_path: Path) -> None:
    own = tmp_path / "checkpoints"
    shutil.copytree(CHECKPOINTS / FOLDER, own / FOLDER)
    before = AutoencoderKL.from_pretrained(own / FOLDER)
    vae_whole.train(Workspace(few, tmp_path / "states", own, torch.device("cpu"), steps=2))
    after = AutoencoderKL.from_pretrained(own / FOLDER)
    images = few.images([0, 1])
    old, new = (vae.encode(images).latent_dist.mean * vae.config["scaling_factor"] for vae in (before, after))
    assert 0 < (old - new).square().mean().sqrt() < 0.2
    assert not torch.equal(before.decode(old).sample, after.decode(old).sample)


def test_a_stopped_training_goes_on_holding_latents_near_those_of_its_beginning(few: Pool, tmp_path: Path) -> None:
    own, states = tmp_path / "checkpoints", tmp_path / "states"
    shutil.copytree(CHECKPOINTS / FOLDER, own / FOLDER)
    workspace = Workspace(few, states, own, torch.device("cpu"), steps=1)
    began = load(workspace).encoder.conv_in.weight
    vae_whole.train(workspace)
    assert not torch.equal(load(workspace).encoder.conv_in.weight, began)
    assert torch.equal(vae_whole.load_before(workspace).encoder.conv_in.weight, began)
    (states / "vae_whole.pt").unlink()
    assert not torch.equal(vae_whole.load_before(workspace).encoder.conv_in.weight, began)  # a new training's beginning
