"""The decoder of the finished autoencoder, trained further by itself: latents, and the U-Net that knows them, stay."""

import copy

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from miniature.train.data import flip_some
from miniature.train.loop import fit
from miniature.train.vae import FOLDER, REFINING_RATE, changed_alike, load, reconstruction_loss
from miniature.train.workspace import Workspace

STEPS = 3000
BATCH = 8
CHANGED_SHARE = 0.25  # of the steps, on latents that are mirrored, made smaller, and noisy


def train(workspace: Workspace) -> None:
    torch.manual_seed(0)
    vae = load(workspace)
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)

    def loss_at(_step: int, generator: torch.Generator) -> Tensor:
        images = workspace.pool.images(workspace.pool.sample(BATCH, generator))
        images = flip_some(images, generator)[0].to(workspace.device)
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean.float()
        if torch.rand((), generator=generator) < CHANGED_SHARE:
            latents, images = changed_alike(latents, images, generator)
        return reconstruction_loss(vae, latents, images)

    def save(average: nn.Module) -> None:
        finished = copy.deepcopy(average)
        assert isinstance(finished, AutoencoderKL)
        workspace.publish(FOLDER, lambda folder: finished.half().save_pretrained(folder))

    fit(
        "decoder",
        vae,
        loss_at,
        steps=workspace.steps or STEPS,
        learning_rate=REFINING_RATE,
        state_folder=workspace.states,
        save=save,
        ema_decay=0.995,
    )
