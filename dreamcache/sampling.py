"""Sampling: images of prompts, personalized by feature caches, with any diffusers scheduler (paper Section 3.2, S4)."""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from dreamcache.adapters import AdapterSet
from dreamcache.cache import FeatureCache
from dreamcache.conditioning import conditioned, require_plain
from dreamcache.configs import SamplingConfig
from dreamcache.guidance import guidance_branches, guided_prediction

if TYPE_CHECKING:
    from dreamcache.backbone import Backbone

__all__ = ["SamplingConfig", "sample_images", "sample_latents"]


def sample_images(
    backbone: "Backbone",
    adapters: AdapterSet | None,
    cache: FeatureCache | None,
    prompts: Sequence[str],
    config: SamplingConfig = SamplingConfig(),  # noqa: B008 (frozen)
    *,
    seeds: Sequence[int] | None = None,
    strength: float | Sequence[float] = 1.0,
    scheduler: Any = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[Image.Image]:
    """Sample one RGB image a prompt, personalized by the cache unless adapters or cache are None.

    The cache holds one reference for all images or one for each (see `FeatureCache.stack`); `strength` is one number
    or one an image, 0 giving the plain image. Seeds, by default 0, 1, 2 ..., fix each image whatever its company, up to
    rounding. `scheduler` is any diffusers scheduler, by default DDIM with the backbone's noise schedule. `batch_size`
    images are made at a time, all their guidance branches in one U-Net call; `progress` gets (steps done, steps).
    ValueError if lengths differ or cache or adapters belong to another backbone.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts are a list, one an image: give [{prompts!r}]")
    count = len(prompts)
    seeds = range(count) if seeds is None else seeds
    strengths = [float(strength)] * count if isinstance(strength, (int, float)) else [float(s) for s in strength]
    if len(seeds) != count or len(strengths) != count:
        raise ValueError(f"{count} prompts need as many seeds and strengths, not {len(seeds)} and {len(strengths)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if cache is not None and cache.references not in (1, count):
        raise ValueError(f"the cache holds {cache.references} references for {count} prompts: give 1 or {count}")
    if adapters is not None:
        adapters.check_backbone(backbone)
    if cache is not None and cache.backbone_identity not in (None, backbone.identity):
        raise ValueError(f"the feature cache was made with another backbone than {backbone.location}: cache it again")
    images: list[Image.Image] = []
    batches = -(-count // batch_size)
    for number in range(batches):
        rows = range(number * batch_size, min(count, (number + 1) * batch_size))
        batch_cache = cache.select(rows) if cache is not None and cache.references > 1 else cache

        def report(done: int, steps: int, before: int = number) -> None:
            if progress is not None:
                progress(before * steps + done, batches * steps)

        latents = sample_latents(
            backbone,
            adapters,
            batch_cache,
            [prompts[i] for i in rows],
            config,
            seeds=[seeds[i] for i in rows],
            strengths=[strengths[i] for i in rows],
            scheduler=scheduler,
            progress=report,
        )
        pixels = (backbone.decode_latents(latents) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        images += [Image.fromarray(image) for image in pixels]
    return images


def ddim_scheduler(backbone: "Backbone") -> Any:
    """DDIM by the backbone's noise schedule, as a Stable Diffusion is sampled, also where its folder does not say so:
    the predicted latents are not clipped, and the last step is timestep 1.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(backbone.scheduler.config, clip_sample=False, steps_offset=1)


@torch.no_grad()
def sample_latents(
    backbone: "Backbone",
    adapters: AdapterSet | None,
    cache: FeatureCache | None,
    prompts: Sequence[str],
    config: SamplingConfig,
    *,
    seeds: Sequence[int],
    strengths: Sequence[float],
    scheduler: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """One batch of `sample_images` before decoding: scaled latents (B, C, h, w) in the backbone's dtype."""
    scheduler = scheduler or ddim_scheduler(backbone)
    if config.steps >= backbone.timesteps:
        raise ValueError(f"{config.steps} steps are too many for a backbone of {backbone.timesteps} timesteps")
    scheduler.set_timesteps(config.steps, device=backbone.device)
    require_plain(backbone.unet)
    personalized = adapters is not None and cache is not None
    branches = guidance_branches(config, personalized)
    null_text = backbone.encode_prompts([config.negative_prompt or ""]).expand(len(prompts), -1, -1)
    prompt_text = backbone.encode_prompts(prompts)
    text = torch.cat([prompt_text if branch.text else null_text for branch in branches])
    by_row = torch.tensor([s if branch.reference else 0.0 for branch in branches for s in strengths])

    # Seeded on the CPU, so that a seed means the same image on every device.
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    noise = torch.stack([torch.randn(backbone.latent_shape, generator=generator) for generator in generators])
    latents = noise.to(backbone.device, backbone.dtype) * scheduler.init_noise_sigma
    accepted = inspect.signature(scheduler.step).parameters
    extra = {name: value for name, value in (("eta", config.eta), ("generator", generators)) if name in accepted}
    with conditioned(backbone.unet, adapters, cache, by_row):
        for done, timestep in enumerate(scheduler.timesteps, start=1):
            rows = scheduler.scale_model_input(latents, timestep).repeat(len(branches), 1, 1, 1)
            predictions = backbone.unet(rows, timestep, encoder_hidden_states=text, return_dict=False)[0]
            prediction = guided_prediction(predictions.chunk(len(branches)), config)
            latents = scheduler.step(prediction, timestep, latents, **extra, return_dict=False)[0]
            if progress is not None:
                progress(done, len(scheduler.timesteps))
    return latents
