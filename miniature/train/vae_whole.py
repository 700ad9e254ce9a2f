"""The finished autoencoder on whole scenes; latents stay near what they were, for the U-Net that knows them."""

from dataclasses import replace
from functools import partial

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from dreamcache.processes import wait_for_all
from miniature.train.data import flip_some
from miniature.train.loop import fit
from miniature.train.vae import FOLDER, REFINING_RATE, changed_alike, load, publish, reconstruction_loss
from miniature.train.workspace import Workspace

STEPS = 5000
BATCH = 8
CHANGED_SHARE = 0.25  # of the steps, on latents that are mirrored, made smaller, and noisy
CHANGED_UNTIL = 0.83  # of all steps; the last ones see latents as they are
KEPT_WEIGHT = 0.002  # of how far latents, in their own units, lie from those of before


def train(workspace: Workspace) -> None:
    torch.manual_seed(0)
    vae = load(workspace)
    before = load_before(workspace).eval().requires_grad_(False)
    steps = workspace.steps or STEPS

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        images = workspace.pool.images(workspace.pool.sample(BATCH, generator))
        images = flip_some(images, generator)[0].to(workspace.device)
        posterior = vae.encode(images).latent_dist
        kept = F.mse_loss(posterior.parameters.float(), before.encode(images).latent_dist.parameters.float())
        latents = posterior.mean.float()
        if step < CHANGED_UNTIL * steps and torch.rand((), generator=generator) < CHANGED_SHARE:
            latents, images = changed_alike(latents, images, generator)
        return reconstruction_loss(vae, latents, images) + KEPT_WEIGHT * kept

    fit(
        "vae_whole",
        vae,
        loss_at,
        steps=steps,
        learning_rate=REFINING_RATE,
        state_folder=workspace.states,
        save=partial(publish, workspace),
        ema_decay=0.995,
    )


def load_before(workspace: Workspace) -> AutoencoderKL:
    """The autoencoder this training began with, kept beside its state: one that is stopped publishes its average."""
    kept = replace(workspace, checkpoints=workspace.states / "before")
    if not ((kept.checkpoints / FOLDER).is_dir() and (workspace.states / "vae_whole.pt").exists()):
        kept.publish(FOLDER, load(workspace).save_pretrained)
    wait_for_all()
    return load(kept)
