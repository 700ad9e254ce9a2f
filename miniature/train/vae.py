"""The autoencoder of the miniature Stable Diffusion: 128 px to 16 x 16 latents of 12 channels."""

import copy
from functools import partial

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from miniature.train.data import SIZE, flip_some
from miniature.train.loop import fit
from miniature.train.workspace import Workspace

FOLDER = "stable-diffusion/vae"
STEPS = 5500
BATCH = 8
LEARNING_RATE, REFINING_RATE = 4e-3, 2e-3  # from nothing; from a finished autoencoder
CROP, CROPPED_SHARE = 64, 0.92  # early steps see quarter crops, four times as many in the same time
KL_WEIGHT = 1e-4  # on the mean over elements; keeps latents from growing without end, and does not blur them
FIRST_LOG_VARIANCE = -6.0  # of the latents' noise, which would else drown the first steps
ABSOLUTE_WEIGHT = 0.05  # a little L1 beside L2 keeps edges while PSNR rules
CHANGED_WEIGHT = 0.5  # of the loss on latents that are mirrored, made smaller, and noisy
MOST_NOISE = 0.2  # in them, in units of the latents


def build() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(22, 44, 66, 132),
        layers_per_block=1,
        latent_channels=12,
        norm_num_groups=11,
        sample_size=128,
    )


def load(workspace: Workspace) -> AutoencoderKL:
    """The finished autoencoder, in float32 on the device."""
    vae = AutoencoderKL.from_pretrained(workspace.checkpoints / FOLDER, torch_dtype=torch.float32).to(workspace.device)
    vae.register_to_config(_name_or_path="")  # not where it lay when it was read
    return vae


def train(workspace: Workspace) -> None:
    torch.manual_seed(0)
    vae = build()
    with torch.no_grad():
        vae.quant_conv.bias[vae.config.latent_channels :] = FIRST_LOG_VARIANCE
    vae = workspace.beginning(FOLDER, vae)
    steps = workspace.steps or STEPS

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        images = workspace.pool.images(workspace.pool.sample(BATCH, generator))
        if step < CROPPED_SHARE * steps:
            top, left = torch.randint(SIZE - CROP + 1, (2,), generator=generator).tolist()
            images = images[..., top : top + CROP, left : left + CROP]
        images = flip_some(images, generator)[0].to(workspace.device)
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(images)
        latents = posterior.mean + posterior.std * noise
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
        same = reconstruction_loss(vae, latents, images)
        changed = reconstruction_loss(vae, *changed_alike(latents, images, generator))
        return same + CHANGED_WEIGHT * changed + KL_WEIGHT * kl

    fit(
        "vae",
        vae,
        loss_at,
        steps=steps,
        learning_rate=REFINING_RATE if workspace.refine else LEARNING_RATE,
        state_folder=workspace.states,
        save=partial(publish, workspace),
        ema_decay=0.995,
    )


def publish(workspace: Workspace, average: nn.Module) -> None:
    """Makes an average the finished autoencoder, in half precision and with the scaling factor of its latents."""
    finished = copy.deepcopy(average)
    assert isinstance(finished, AutoencoderKL)
    finished.register_to_config(scaling_factor=round(1.0 / latent_deviation(workspace, finished), 4))
    workspace.publish(FOLDER, lambda folder: finished.half().save_pretrained(folder))


def reconstruction_loss(vae: AutoencoderKL, latents: Tensor, images: Tensor) -> Tensor:
    decoded = vae.decode(latents).sample.float()
    return F.mse_loss(decoded, images) + ABSOLUTE_WEIGHT * F.l1_loss(decoded, images)


def changed_alike(latents: Tensor, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents (B, C, n, n) with noise and their images, both mirrored, or made smaller, to n / 2 at least, or both.

    Latents that decode alike after such a change are meant to be easier for a U-Net (EQ-VAE, Kouzelis et al. 2025);
    noise on them, to make the decoder forgive what the U-Net leaves of it.
    """
    side, smallest = latents.shape[-1], latents.shape[-1] // 2
    size = smallest + int(torch.randint(side - smallest + 1, (), generator=generator))
    mirrored = size == side or bool(torch.randint(2, (), generator=generator))
    factor = images.shape[-1] // side
    changed = []
    for tensor, scale in ((latents, 1), (images, factor)):
        if size < side:
            tensor = F.interpolate(tensor, size=(size * scale,) * 2, mode="bilinear", antialias=True)
        changed.append(tensor.flip(-1) if mirrored else tensor)
    amount = MOST_NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator)
    noise = amount * torch.randn(changed[0].shape, generator=generator)
    return changed[0] + noise.to(latents), changed[1]


@torch.no_grad()
def latent_deviation(workspace: Workspace, vae: AutoencoderKL) -> float:
    """Standard deviation of the latents of 256 scenes, whose inverse is the scaling factor."""
    images = workspace.pool.images(list(range(0, len(workspace.pool), max(1, len(workspace.pool) // 256))))
    latents = [vae.encode(batch.to(workspace.device)).latent_dist.mean for batch in images.split(16)]
    return float(torch.cat(latents).std())
