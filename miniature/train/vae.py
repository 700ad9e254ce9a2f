"""The autoencoder of the miniature Stable Diffusion: 128 px to 16 x 16 latents of 12 channels."""

import copy

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
CROP, CROPPED_SHARE = 64, 0.92  # early steps see quarter crops, four times as many in the same time
KL_WEIGHT = 1e-4  # on the mean over elements; keeps latents near unit scale without blurring them
FIRST_LOG_VARIANCE = -6.0  # of the latents' noise, which would else drown the first steps
ABSOLUTE_WEIGHT = 0.05  # a little L1 beside L2 keeps edges while PSNR rules


def build() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 96),
        layers_per_block=1,
        latent_channels=12,
        norm_num_groups=8,
        sample_size=128,
    )


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
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
        return F.mse_loss(decoded, images) + ABSOLUTE_WEIGHT * F.l1_loss(decoded, images) + KL_WEIGHT * kl

    def save(average: nn.Module) -> None:
        finished = copy.deepcopy(average)
        assert isinstance(finished, AutoencoderKL)
        finished.register_to_config(scaling_factor=round(1.0 / latent_deviation(workspace, finished), 4))
        workspace.publish(FOLDER, lambda folder: finished.half().save_pretrained(folder))

    fit(
        "vae",
        vae,
        loss_at,
        steps=steps,
        learning_rate=4e-3,
        state_folder=workspace.states,
        save=save,
        ema_decay=0.995,
    )


@torch.no_grad()
def latent_deviation(workspace: Workspace, vae: AutoencoderKL) -> float:
    """Standard deviation of the latents of 256 scenes, whose inverse is the scaling factor."""
    images = workspace.pool.images(list(range(0, len(workspace.pool), max(1, len(workspace.pool) // 256))))
    latents = [vae.encode(batch.to(workspace.device)).latent_dist.mean for batch in images.split(16)]
    return float(torch.cat(latents).std())
