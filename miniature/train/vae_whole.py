"""The finished autoencoder on whole scenes; latents stay near what they were, for the U-Net that knows them."""

import copy
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from miniature.train.data import flip_some
from miniature.train.loop import fit
from miniature.train.vae import REFINING_RATE, changed_alike, load, publish, reconstruction_loss
from miniature.train.workspace import Workspace

STEPS = 3500
BATCH = 8
CHANGED_SHARE = 0.25  # of the steps, on latents that are mirrored, made smaller, and noisy
CHANGED_UNTIL = 0.83  # of all steps; the last ones see latents as they are
KEPT_WEIGHT = 0.002  # of how far latents, in their own units, lie from those of before


def train(workspace: Workspace) -> None:
    torch.manual_seed(0)
    vae = load(workspace)
    steps = workspace.steps or STEPS
    before = copy.deepcopy(vae).eval().requires_grad_(False)

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
