"""A very small Stable Diffusion with random weights, in SD 1.5's block layout, as a diffusers folder."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def tiny_tokenizer(max_length: int = 16) -> CLIPTokenizer:
    """A CLIP tokenizer that reads text letter by letter."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,-'"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=max_length)


def tiny_unet(
    latent_channels: int = 4, latent_size: int = 8, text_width: int = 16, seed: int = 0, **others: Any
) -> UNet2DConditionModel:
    """A U-Net of channels 16, 32, 32, 32 with 2 heads: its layers bear SD 1.5's names."""
    torch.manual_seed(seed)
    options = {"attention_head_dim": 2, **others}
    return UNet2DConditionModel(
        sample_size=latent_size, in_channels=latent_channels, out_channels=latent_channels,
        block_out_channels=(16, 32, 32, 32), cross_attention_dim=text_width, norm_num_groups=8, **options,
    ).eval()  # fmt: skip


def save_tiny_stable_diffusion(
    folder: Path, latent_channels: int = 4, latent_size: int = 8, seed: int = 0, prediction_type: str = "epsilon"
) -> Path:
    """Write the pipeline to a folder: images of 8 times the latents' size, by default 64 px."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=latent_channels, norm_num_groups=4,
        sample_size=8 * latent_size, scaling_factor=0.5,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer,
        unet=tiny_unet(latent_channels, latent_size, seed=seed), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
