from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_dreamcache_adapters import moved_adapters
from tiny_diffusion import save_tiny_stable_diffusion
from tiny_triplets import write_tiny_triplets

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.cache import FeatureCache, collect_features
from dreamcache.conditioning import conditioned
from dreamcache.configs import LossWeights, TrainingConfig
from dreamcache.objective import min_snr_weights, training_loss, weighted_losses
from dreamcache.training_data import TrainingData, collate, store_latents
from dreamcache.validation import held_out_triplets, prepare_validation, target_mask
from shards.triplets import TripletShards

CONFIG = TrainingConfig(steps=8, batch_size=4, held_out=0.3, store_latents=False)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(save_tiny_stable_diffusion(tmp_path_factory.mktemp("objective") / "sd"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    return write_tiny_triplets(tmp_path_factory.mktemp("objective") / "run")


def test_losses_of_v_prediction_and_min_snr(paths, backbone, tmp_path):
    shards = TripletShards(paths)
    v = load_backbone(save_tiny_stable_diffusion(tmp_path / "v", prediction_type="v_prediction"))
    batch = collate([TrainingData(shards, CONFIG, v, None)[number] for number in range(4)])
    for one in (v, backbone):
        adapters, null_text = AdapterSet.for_unet(one.unet), one.encode_prompts([""])
        plain, weighted = (
            float(training_loss(one, adapters, batch, null_text, LossWeights(gamma)).detach()) for gamma in (None, 0.01)
        )
        assert 0 < weighted < plain
    latents, noise = torch.randn(2, 3, *v.latent_shape, generator=torch.Generator().manual_seed(0))
    timesteps, mask = torch.tensor([3, 300, 990]), batch["mask"][:3]
    velocity = v.training_target(latents, noise, timesteps)
    torch.testing.assert_close(velocity, v.scheduler.get_velocity(latents, noise, timesteps))
    snr = v.alphas_cumprod[timesteps] / (1 - v.alphas_cumprod[timesteps])
    # In v an error of the predicted latents counts SNR + 1 times, min(SNR, gamma) times as weighted.
    expected = velocity.square().mean((1, 2, 3)) * snr.clamp(max=5.0) / (snr + 1)
    torch.testing.assert_close(weighted_losses(v, velocity, timesteps, mask, LossWeights(5.0)), expected)


def test_min_snr_weights_of_either_prediction():
    alphas = torch.tensor([0.05, 0.5, 0.75, 0.9])  # signal-to-noise ratios of 1/19, 1, 3 and 9
    torch.testing.assert_close(min_snr_weights(alphas, 3.0, "epsilon"), torch.tensor([1, 1, 1, 1 / 3]))
    torch.testing.assert_close(min_snr_weights(alphas, 3.0, "v_prediction"), torch.tensor([1 / 20, 0.5, 0.75, 0.3]))


@torch.no_grad()
def test_the_loss_is_that_of_its_rows_written_out(paths, backbone):
    """Row by row: each with its own noise and text, its reference with its own noise, at the adapters' timestep."""
    ablation = {"cache_timestep": 150, "cache_prompt": "a photo of a {subject}"}
    adapters = moved_adapters(backbone.unet, **ablation)
    config = CONFIG.model_copy(update={"adapters": adapters.config})
    data = TrainingData(TripletShards(paths), config, backbone, None)
    rows, at = [data[number] | {"drop_caption": number % 2 == 0} for number in range(4)], torch.tensor([150])
    assert {row["subject"] for row in rows} == {"disc", "ball"}
    losses = []
    for row in rows:
        reference, noun = backbone.encode_images(row["reference"][None]), f"a photo of a {row['subject']}"
        noisy = backbone.add_noise(reference, row["reference_noise"][None], at)
        features = collect_features(backbone.unet, noisy, at, backbone.encode_prompts([noun]), adapters.cached_layers)
        timestep = torch.tensor([row["timestep"]])
        noisy = backbone.add_noise(backbone.encode_images(row["target"][None]), row["noise"][None], timestep)
        text = backbone.encode_prompts(["" if row["drop_caption"] else row["caption"]])
        with conditioned(backbone.unet, adapters, FeatureCache(features)):
            predicted = backbone.unet(noisy, timestep, encoder_hidden_states=text).sample
        losses.append(float((predicted - row["noise"]).square().mean()))
    loss = float(training_loss(backbone, adapters, collate(rows), backbone.encode_prompts([""])))
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_subject_counts_as_much_more_as_its_weight_says(paths, backbone):
    data = TrainingData(TripletShards(paths), CONFIG, backbone, None)
    batch = collate([data[number] for number in range(4)])
    adapters, null_text = AdapterSet.for_unet(backbone.unet), backbone.encode_prompts([""])

    def loss(weight: float, mask: torch.Tensor) -> float:
        weights = LossWeights(subject_weight=weight)
        return float(training_loss(backbone, adapters, batch | {"mask": mask}, null_text, weights).detach())

    mask, share = torch.zeros_like(batch["mask"]), 0.25
    mask[..., : mask.shape[-1] // 4] = 1
    plain, heavy = loss(1.0, mask), loss(1e6, mask)
    background = loss(1e6, 1 - mask)
    assert share * heavy + (1 - share) * background == pytest.approx(plain, rel=1e-4)
    assert loss(3.0, mask) == pytest.approx((3 * share * heavy + (1 - share) * background) / (1 + 2 * share), rel=1e-4)
    assert loss(3.0, torch.ones_like(mask)) == pytest.approx(plain)


def test_masks_lie_on_the_latents_of_their_subjects(paths, backbone):
    shards = TripletShards(paths)
    stored = store_latents(backbone, shards, CONFIG)
    rows = [TrainingData(shards, CONFIG, backbone, files)[0]["mask"] for files in (None, stored)]
    assert torch.equal(*rows) and rows[0].shape == backbone.latent_shape[1:]

    wide = Image.new("L", (128, 64), 0)  # of an image whose left and right quarters are cropped away
    wide.paste(255, (0, 0, 48, 32))
    assert np.array_equal(target_mask(wide, 4), [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


@torch.no_grad()
def test_held_out_losses_are_weighted_as_the_training(paths, backbone):
    triplets = held_out_triplets(TripletShards(paths), CONFIG.held_out, 2)
    seen = prepare_validation(backbone, triplets, weights=LossWeights(min_snr_gamma=0.5, subject_weight=3.0))
    for row in range(2):
        by_timestep = []
        for timestep, noise in zip(seen.timesteps[row], seen.noise[row], strict=True):
            noisy = backbone.add_noise(seen.latents[row][None], noise[None], timestep[None])
            squares = (backbone.unet(noisy, timestep, encoder_hidden_states=seen.text[row][None]).sample - noise) ** 2
            counts = 1 + 2 * seen.mask[row].expand_as(squares)
            snr = backbone.alphas_cumprod[timestep] / (1 - backbone.alphas_cumprod[timestep])
            by_timestep.append(float((squares * counts).sum() / counts.sum() * min(1.0, 0.5 / float(snr))))
        assert float(seen.none[row]) == pytest.approx(sum(by_timestep) / len(by_timestep), rel=1e-4)
