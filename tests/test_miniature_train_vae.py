"""The autoencoder's training: latents and images are changed alike."""

import pytest
import torch
from torch import nn

from miniature.train.vae import MOST_NOISE, changed_alike


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
