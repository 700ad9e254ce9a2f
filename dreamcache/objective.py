"""What adapters are trained by: the loss of one batch (paper Section 3.3, Eq. 6)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamcache.adapters import AdapterSet
from dreamcache.cache import FeatureCache, reference_features
from dreamcache.conditioning import conditioned
from dreamcache.configs import LossWeights

if TYPE_CHECKING:
    from dreamcache.backbone import Backbone


def batch_cache(backbone: "Backbone", adapters: AdapterSet, batch: dict[str, Any], null_text: Tensor) -> FeatureCache:
    """The feature cache of the references in a batch of `TrainingData`, for `adapters`."""
    if "reference_latents" in batch:
        references = batch["reference_latents"].to(backbone.device)
    else:
        references = backbone.encode_images(batch["reference"])
    noise, text = batch["reference_noise"].to(backbone.device, backbone.dtype), null_text
    if adapters.config.cache_prompt:
        text = backbone.encode_prompts(adapters.cache_settings(batch["subject"])["prompt"])
    timestep = adapters.config.cache_timestep
    return FeatureCache(reference_features(backbone, references, noise, adapters.cached_layers, text, timestep))


def training_loss(
    backbone: "Backbone",
    adapters: AdapterSet,
    batch: dict[str, Any],
    null_text: Tensor,
    weights: LossWeights = LossWeights(),  # noqa: B008 (frozen)
) -> Tensor:
    """The loss of one batch of `TrainingData` (paper Eq. 6), a scalar float32 whose gradients reach adapters alone."""
    device = backbone.device
    latents = batch["latents"].to(device) if "latents" in batch else backbone.encode_images(batch["target"])
    text = batch["text"].to(device) if "text" in batch else backbone.encode_prompts(batch["caption"])
    text = torch.where(batch["drop_caption"].to(device)[:, None, None], null_text, text)
    cache = batch_cache(backbone, adapters, batch, null_text)
    timesteps, noise = batch["timestep"].to(device), batch["noise"].to(device)
    noisy = backbone.add_noise(latents, noise, timesteps)
    with conditioned(backbone.unet, adapters, cache):
        prediction = backbone.unet(noisy, timesteps, encoder_hidden_states=text).sample
    error = prediction.float() - backbone.training_target(latents, noise, timesteps)
    return weighted_losses(backbone, error, timesteps, batch["mask"].to(device), weights).mean()


def weighted_losses(
    backbone: "Backbone", error: Tensor, timesteps: Tensor, mask: Tensor, weights: LossWeights
) -> Tensor:
    """Each row's mean squared error, (B,), of errors (B, C, h, w) at timesteps (B,), weighted.

    A timestep whose signal-to-noise ratio is above `min_snr_gamma` counts gamma / ratio; an error on the subject counts
    `subject_weight` times one on its background, by `mask` (B, h, w) in [0, 1]. Neither is the paper's.
    """
    squares = error.square()
    losses = squares.mean(dim=(1, 2, 3))
    if weights.subject_weight != 1:
        importance = 1 + (weights.subject_weight - 1) * mask
        losses = (importance * squares.mean(dim=1)).sum(dim=(1, 2)) / importance.sum(dim=(1, 2))
    if weights.min_snr_gamma is not None:
        alphas = backbone.alphas_cumprod[timesteps]
        losses = losses * min_snr_weights(alphas, weights.min_snr_gamma, backbone.prediction_type)
    return losses


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """How much a mean squared error counts, of the shape of `alphas_cumprod`: min(SNR, gamma) / SNR, in (0, 1].

    Of a velocity's ("v_prediction") error it is min(SNR, gamma) / (SNR + 1). Hang et al., Efficient Diffusion Training
    via Min-SNR Weighting Strategy.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / (snr if prediction_type == "epsilon" else snr + 1)
