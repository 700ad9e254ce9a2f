from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from tiny_diffusion import save_tiny_stable_diffusion
from tiny_triplets import write_tiny_triplets

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.configs import LossWeights, TrainingConfig
from dreamcache.objective import DRIFT_GUIDANCE, drifted_noise, training_loss
from dreamcache.training_data import DRIFT_TIMESTEPS, TrainingData, collate, store_latents
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


@torch.no_grad()
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_drifted_subject_is_where_ddim_without_a_reference_takes_it(paths, tmp_path, prediction_type):
    backbone = load_backbone(save_tiny_stable_diffusion(tmp_path / "sd", prediction_type=prediction_type))
    batch = collate([TrainingData(TripletShards(paths), CONFIG, backbone, None)[number] for number in range(3)])
    latents, text = backbone.encode_images(batch["target"]), backbone.encode_prompts(batch["caption"])
    null_text, noise = backbone.encode_prompts([""]), batch["noise"]
    timesteps, starts = torch.tensor([300, 500, 80]), torch.tensor([400, 500, 180])
    mask = torch.zeros_like(batch["mask"])
    mask[:, :3] = 1
    found = drifted_noise(backbone, latents, noise, text, null_text, mask, timesteps, starts)
    assert torch.equal(found[1], noise[1]) and torch.equal(found[:, :, 3:], noise[:, :, 3:])

    scheduler = DDIMScheduler.from_config(backbone.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(10)  # steps of 100 timesteps
    reached = backbone.add_noise(latents, found, timesteps)
    for row in (0, 2):
        noisy = backbone.add_noise(latents[row, None], noise[row, None], starts[row, None])
        plain, with_text = (
            backbone.unet(noisy, starts[row], encoder_hidden_states=one).sample for one in (null_text, text[row, None])
        )
        prediction = plain + DRIFT_GUIDANCE * (with_text - plain)
        expected = scheduler.step(prediction, int(starts[row]), noisy).prev_sample[0]
        torch.testing.assert_close(reached[row, :, :3], expected[:, :3], rtol=1e-4, atol=1e-4)


def test_as_many_rows_drift_as_are_asked_for_and_nothing_else_of_them_changes(paths, backbone):
    shards = TripletShards(paths)
    long = CONFIG.model_copy(update={"steps": 100})
    plain, drifting = (
        TrainingData(shards, long.model_copy(update={"drift": share}), backbone, None) for share in (0.0, 0.3)
    )
    further = []
    for number in range(400):
        before, after = plain[number], drifting[number]
        further.append(after.pop("drift_start") - after["timestep"])
        assert before.keys() == after.keys() and before["timestep"] == after["timestep"]
        assert torch.equal(before["noise"], after["noise"]) and torch.equal(before["reference"], after["reference"])
    assert 0.2 < sum(step > 0 for step in further) / 400 < 0.4
    assert min(further) == 0 and DRIFT_TIMESTEPS / 2 < max(further) <= DRIFT_TIMESTEPS
    assert long.content() == long.model_copy(update={"drift": 0.0}).content() and "drift" not in long.content()
