"""The miniature Stable Diffusion: SD 1.5's block layout on 16 x 16 latents, assembled with its VAE and text encoder."""

import copy
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel

from dreamcache.objective import min_snr_weights
from miniature.train.arithmetic import multiplies_bfloat16
from miniature.train.latents import LatentPool
from miniature.train.loop import fit
from miniature.train.tokenizers import load_clip_tokenizer
from miniature.train.vae import load as load_vae
from miniature.train.workspace import Workspace

STEPS = 4500
BATCH = 32
MIN_SNR_GAMMA = 5.0  # nearly clean timesteps do not drown the others


def build(latent_channels: int, text_width: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(48, 80, 112, 112),
        layers_per_block=2,
        cross_attention_dim=text_width,
        attention_head_dim=(2, 4, 4, 4),  # numbers of heads, in spite of the name
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Denoiser(nn.Module):
    """U-Net and text encoder, trained together: unlike SD 1.5's frozen one, this encoder has not read the web."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder


def train(workspace: Workspace) -> None:
    torch.manual_seed(0)
    clip_folder = workspace.checkpoints / "clip"
    tokenizer = load_clip_tokenizer(clip_folder)
    clip = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32)
    text_encoder = CLIPTextModel(clip.config.text_config)
    text_encoder.load_state_dict(clip.text_model.state_dict())
    vae = load_vae(workspace).requires_grad_(False)
    pool = LatentPool.of(workspace, vae, tokenizer)
    scheduler = build_scheduler()
    weights = min_snr_weights(scheduler.alphas_cumprod, MIN_SNR_GAMMA, scheduler.config.prediction_type)
    unet = build(vae.config.latent_channels, clip.config.text_config.hidden_size)
    unet = workspace.beginning("stable-diffusion/unet", unet)
    text_encoder = workspace.beginning("stable-diffusion/text_encoder", text_encoder)
    model = Denoiser(unet, text_encoder)
    if workspace.device.type == "cpu" and multiplies_bfloat16(workspace.device):
        model.unet.set_attn_processor(AttnProcessor())  # so plain operations train faster than fused ones
    if workspace.compile:
        model.unet.compile()

    def loss_at(_step: int, generator: torch.Generator) -> Tensor:
        batch = pool.sample(workspace.batch or BATCH, generator)
        timesteps = torch.randint(len(weights), (len(batch.tokens),), generator=generator)
        noise = torch.randn(batch.latents.shape, generator=generator).to(workspace.device)
        noisy = scheduler.add_noise(batch.latents, noise, timesteps)
        text = model.text_encoder(batch.tokens)[0]
        predicted = model.unet(noisy, timesteps.to(workspace.device), text).sample
        errors = F.mse_loss(predicted, noise, reduction="none").mean(1)
        errors = (batch.importance * errors).sum((1, 2)) / batch.importance.sum((1, 2))
        return (weights[timesteps].to(workspace.device) * errors).mean()

    def save(average: nn.Module) -> None:
        finished = copy.deepcopy(average).half()
        assert isinstance(finished, Denoiser)
        pipeline = StableDiffusionPipeline(
            vae=copy.deepcopy(vae).half(),
            text_encoder=finished.text_encoder,
            tokenizer=tokenizer,
            unet=finished.unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

        def write(folder: Path) -> None:
            pipeline.save_pretrained(folder, max_shard_size="14MB")

        workspace.publish("stable-diffusion", write)

    fit(
        "unet",
        model,
        loss_at,
        steps=workspace.steps or STEPS,
        learning_rate=2e-3,
        state_folder=workspace.states,
        save=save,
    )
