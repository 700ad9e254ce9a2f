"""The miniature Stable Diffusion: SD 1.5's block layout on 16 x 16 latents, assembled with its VAE and text encoder."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel

from miniature.train.arithmetic import fast_arithmetic
from miniature.train.data import SIZE, Pool
from miniature.train.loop import fit
from miniature.train.tokenizers import load_clip_tokenizer
from miniature.train.vae import FOLDER as VAE
from miniature.train.workspace import Workspace

STEPS = 4500
BATCH = 32
CAPTION_DROPOUT = 0.1
SNR_CAP = 5.0  # min-SNR weighting: nearly clean timesteps do not drown the others
SUBJECT_WEIGHT = 4.0  # of an error on a subject, beside 1 on the background, which is learned sooner


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


@torch.no_grad()
def encode_pool(workspace: Workspace, vae: AutoencoderKL) -> np.ndarray:
    """Scaled latents of every scene and its mirror image, float16 (2, N, C, 16, 16), kept in the pool's folder."""
    weights = (workspace.checkpoints / VAE / "diffusion_pytorch_model.safetensors").read_bytes()
    file = workspace.pool.folder / f"latents-{hashlib.sha256(weights).hexdigest()[:12]}.npy"
    count = len(workspace.pool)
    if not file.exists():
        temporary = file.with_suffix(".tmp.npy")
        shape = (2, count, vae.config.latent_channels, 16, 16)
        latents = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        for first in range(0, count, 64):
            indices = list(range(first, min(first + 64, count)))
            images = workspace.pool.images(indices).to(workspace.device)
            for mirrored in range(2):
                with fast_arithmetic(workspace.device):
                    encoded = vae.encode(images.flip(-1) if mirrored else images).latent_dist.mean
                latents[mirrored, indices] = (encoded.float() * vae.config.scaling_factor).cpu().numpy()
            if first % 3200 == 0:
                print(f"unet: {first}/{count} scenes encoded", flush=True)
        latents.flush()
        temporary.rename(file)
    return np.load(file, mmap_mode="r")


def importance_of(pool: Pool, indices: list[int], mirrored: Tensor) -> Tensor:
    """How much the error of each latent counts, (B, 16, 16): 1 on the background to SUBJECT_WEIGHT on a subject.

    `mirrored` (B,) says which scenes are seen in the mirror.
    """
    subjects = pool.masks(indices).maximum(pool.masks(indices, "second_masks"))
    subjects = torch.where(mirrored.bool()[:, None, None], subjects.flip(-1), subjects)
    return 1.0 + (SUBJECT_WEIGHT - 1.0) * F.avg_pool2d(subjects, SIZE // 16)


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
    vae = AutoencoderKL.from_pretrained(workspace.checkpoints / VAE, torch_dtype=torch.float32).to(workspace.device)
    vae.requires_grad_(False)
    vae.register_to_config(_name_or_path="")  # not where it lay when this was trained
    latents = encode_pool(workspace, vae)
    scheduler = build_scheduler()
    signal_to_noise = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    unet = build(vae.config.latent_channels, clip.config.text_config.hidden_size)
    unet = workspace.beginning("stable-diffusion/unet", unet)
    text_encoder = workspace.beginning("stable-diffusion/text_encoder", text_encoder)
    model = Denoiser(unet, text_encoder)
    if workspace.compile:
        model.unet.compile()

    def loss_at(_step: int, generator: torch.Generator) -> Tensor:
        indices = workspace.pool.sample(BATCH, generator)
        mirrored = torch.randint(2, (BATCH,), generator=generator)
        clean = torch.from_numpy(latents[mirrored.numpy(), indices].astype(np.float32))
        importance = importance_of(workspace.pool, indices, mirrored).to(workspace.device)
        dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROPOUT
        captions = [
            "" if drop else workspace.pool.scenes[index]["caption"]
            for index, drop in zip(indices, dropped, strict=True)
        ]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        timesteps = torch.randint(len(signal_to_noise), (BATCH,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        text = model.text_encoder(tokens.to(workspace.device))[0]
        predicted = model.unet(noisy.to(workspace.device), timesteps.to(workspace.device), text).sample
        errors = F.mse_loss(predicted, noise.to(workspace.device), reduction="none").mean(1)
        errors = (importance * errors).sum((1, 2)) / importance.sum((1, 2))
        weights = (SNR_CAP / signal_to_noise[timesteps]).clamp(max=1.0).to(workspace.device)
        return (weights * errors).mean()

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
