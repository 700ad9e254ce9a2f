"""Validation: the loss on held-out triplets at fixed noise and timesteps, with the right, a wrong and no reference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dreamcache.adapters import AdapterSet
from dreamcache.cache import FeatureCache, cache_reference
from dreamcache.conditioning import conditioned
from dreamcache.configs import LossWeights
from dreamcache.held_out import FEWEST, is_held_out, key_hash
from dreamcache.objective import weighted_losses
from dreamcache.reference import reference_image, to_tensor
from shards.memory import in_batches

if TYPE_CHECKING:
    from dreamcache.backbone import Backbone
    from shards.triplets import Triplet, TripletShards

# Timesteps a triplet is measured at, one in each equal part of the schedule.
TIMESTEPS_A_TRIPLET = 4
BATCH = 16  # images encoded, or noise predicted for, at a time


def held_out_triplets(shards: "TripletShards", fraction: float, limit: int) -> list["Triplet"]:
    """At most `limit` held-out triplets, in the order of their keys' hashes, which growth does not change much."""
    places = [
        (key_hash(key), shard, index)
        for shard in range(len(shards.counts))
        for index, key in enumerate(shards.keys(shard))
        if is_held_out(key, fraction)
    ]
    return [shards.read(shard, index) for _, shard, index in sorted(places)[:limit]]


@dataclass(frozen=True)
class ValidationInputs:
    """What validation needs of n triplets, all of it the frozen backbone's work, so done once.

    Latents (n, C, h, w), text (n, L, D), the references' cache and whose reference is each one's wrong one (n,);
    `mask` (n, h, w) is how much of each latent its subject covers; `noise` (n, T, C, h, w) and `timesteps` (n, T)
    depend on the triplets' keys alone; `none` (n,) is the loss without a reference.
    """

    latents: Tensor
    text: Tensor
    cache: FeatureCache
    wrong: Tensor
    mask: Tensor
    weights: LossWeights
    noise: Tensor
    timesteps: Tensor
    none: Tensor


@torch.no_grad()
def prepare_validation(
    backbone: "Backbone",
    triplets: Sequence["Triplet"],
    adapters: AdapterSet | None = None,
    weights: LossWeights = LossWeights(),  # noqa: B008 (frozen)
) -> ValidationInputs:
    """Encode held-out triplets; a triplet's wrong reference is the next one's of its class, or the next one's at all.

    ValueError for fewer than two triplets.
    """
    if len(triplets) < FEWEST:
        raise ValueError(f"validation needs at least {FEWEST} held-out triplets, not {len(triplets)}: raise held_out")
    size = backbone.image_size

    def encode(batch: Sequence["Triplet"]) -> tuple[Tensor, Tensor, FeatureCache]:
        images = torch.stack([target_tensor(triplet.image, size) for triplet in batch])
        cutouts = [to_tensor(reference_image(triplet.image, triplet.mask, size)) for triplet in batch]
        settings: dict[str, Any] = {}
        if adapters is not None:
            settings = adapters.cache_settings([str(triplet.record.get("subject", "")) for triplet in batch])
        # On the CPU, since the references of a few dozen triplets may fill a good part of a GPU.
        cache = cache_reference(backbone, torch.stack(cutouts), **settings).to("cpu")
        return backbone.encode_images(images), backbone.encode_prompts([triplet.caption for triplet in batch]), cache

    encoded = [found for _, found in in_batches(triplets, {"batch_size": BATCH}, encode)]
    latents, texts, caches = zip(*encoded, strict=True)
    noise, timesteps = [], []
    for triplet in triplets:
        generator = np.random.default_rng(key_hash(triplet.key))
        drawn = generator.standard_normal((TIMESTEPS_A_TRIPLET, *backbone.latent_shape), dtype=np.float32)
        noise.append(torch.from_numpy(drawn))
        parts = (np.arange(TIMESTEPS_A_TRIPLET) + generator.random(TIMESTEPS_A_TRIPLET)) / TIMESTEPS_A_TRIPLET
        timesteps.append(torch.from_numpy((parts * backbone.timesteps).astype(np.int64)))
    classes = [triplet.record.get("class") for triplet in triplets]
    inputs = ValidationInputs(
        torch.cat(latents),
        torch.cat(texts),
        FeatureCache.stack(caches),
        torch.tensor([_next_of_class(classes, index) for index in range(len(triplets))]),
        torch.stack([target_mask(triplet.mask, backbone.latent_shape[-1]) for triplet in triplets]),
        weights,
        torch.stack(noise),
        torch.stack(timesteps),
        torch.empty(0),
    )
    return replace(inputs, none=_losses(backbone, None, inputs, None))


def validation_losses(backbone: "Backbone", adapters: AdapterSet | None, inputs: ValidationInputs) -> dict[str, Tensor]:
    """The loss of each of the n triplets, (n,) float32 each: "right", "wrong" and "none" for the reference it sees.

    All three share noise and timesteps, so that their differences mean something at a few dozen triplets.
    """
    if adapters is None:
        return {"right": inputs.none, "wrong": inputs.none, "none": inputs.none}
    own = torch.arange(len(inputs.latents))
    return {
        "right": _losses(backbone, adapters, inputs, own),
        "wrong": _losses(backbone, adapters, inputs, inputs.wrong),
        "none": inputs.none,
    }


def validation_loss(
    backbone: "Backbone",
    adapters: AdapterSet | None,
    triplets: Sequence["Triplet"],
    weights: LossWeights = LossWeights(),  # noqa: B008 (frozen)
) -> dict[str, float]:
    """The mean of `validation_losses` over held-out triplets, which are encoded first: "right", "wrong" and "none"."""
    inputs = prepare_validation(backbone, triplets, adapters, weights)
    losses = validation_losses(backbone, adapters, inputs)
    return {name: float(values.mean()) for name, values in losses.items()}


@torch.no_grad()
def _losses(
    backbone: "Backbone",
    adapters: AdapterSet | None,
    inputs: ValidationInputs,
    references: Tensor | None,
) -> Tensor:
    """Each triplet's loss, (n,), when it sees the given one's reference; a mean over its timesteps."""
    device = backbone.device

    def measure(batch: Sequence[int]) -> Tensor:
        rows = slice(batch[0], batch[-1] + 1)
        latents, text, mask = inputs.latents[rows], inputs.text[rows], inputs.mask[rows].to(device)
        cache = None if references is None else inputs.cache.select(references[rows].tolist()).to(device)
        by_timestep = []
        with conditioned(backbone.unet, adapters, cache):
            for column in range(inputs.timesteps.shape[1]):
                timesteps, noise = inputs.timesteps[rows, column].to(device), inputs.noise[rows, column].to(device)
                noisy = backbone.add_noise(latents, noise, timesteps)
                prediction = backbone.unet(noisy, timesteps, encoder_hidden_states=text).sample
                error = prediction.float() - backbone.training_target(latents, noise, timesteps)
                by_timestep.append(weighted_losses(backbone, error, timesteps, mask, inputs.weights))
        return torch.stack(by_timestep).mean(dim=0).cpu()

    own = range(len(inputs.latents))
    return torch.cat([losses for _, losses in in_batches(own, {"batch_size": BATCH}, measure)])


def target_tensor(image: Image.Image, size: int) -> Tensor:
    """A target image, cropped to a square if need be, as (3, size, size) in [-1, 1]."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return to_tensor(image.convert("RGB"))


def target_mask(mask: Image.Image, side: int) -> Tensor:
    """How much of each latent of a target image its mask covers: (side, side), 0 to 1, cropped as the image is."""
    fitted = ImageOps.fit(mask.convert("L"), (side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255)


def _next_of_class(classes: Sequence[str | None], index: int) -> int:
    others = [(index + step) % len(classes) for step in range(1, len(classes))]
    return next((other for other in others if classes[other] == classes[index]), others[0])
