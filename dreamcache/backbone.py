"""The backbone: a frozen Stable Diffusion's VAE, text encoder and U-Net (paper Section 3)."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from shards.hub import hub_folder, is_hub_name, weights_digest

WEIGHTED_PARTS = ("unet", "vae", "text_encoder")
# The files that diffusers and transformers load by default; a folder may hold the same weights in other forms too.
_WEIGHTS = (("*model.safetensors", "*model-0*.safetensors"), ("*model.bin", "*model-0*.bin"))
_FILES = (
    "model_index.json",
    "scheduler/*.json",
    "tokenizer/*",
    *(f"{part}/config.json" for part in WEIGHTED_PARTS),
    *(f"{part}/{pattern}" for part in WEIGHTED_PARTS for pattern in (*_WEIGHTS[0], "*model.safetensors.index.json")),
)


class Backbone:
    """A frozen Stable Diffusion in parts: all that the method needs of it, with nothing trained."""

    def __init__(
        self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any, folder: Path, location: str
    ) -> None:
        self.vae, self.text_encoder, self.unet = vae, text_encoder, unet
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.folder, self.location = folder, location
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.float().to(unet.device)
        for module in (vae, text_encoder, unet):
            module.requires_grad_(False).eval()

    def to(self, device: str | torch.device) -> "Backbone":
        """Move the models to a device."""
        for module in (self.vae, self.text_encoder, self.unet):
            module.to(device)
        self.alphas_cumprod = self.alphas_cumprod.to(self.device)
        return self

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def require_dtype(self, dtype: str, work: str) -> None:
        """ValueError where the backbone is not in the dtype, such as "bfloat16", that a work's settings name."""
        if str(self.dtype) != f"torch.{dtype}":
            raise ValueError(f"the backbone is in {self.dtype}, the {work}'s dtype is {dtype}: load it so")

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent pixel has along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> int:
        """The side in pixels of the images that the U-Net was trained on."""
        return self.unet.config.sample_size * self.vae_scale_factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image's latents."""
        return (self.unet.config.in_channels, self.unet.config.sample_size, self.unet.config.sample_size)

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: "epsilon" (the noise) or "v_prediction"."""
        return self.scheduler.config.prediction_type

    @property
    def timesteps(self) -> int:
        """The number of training timesteps."""
        return len(self.alphas_cumprod)

    @cached_property
    def identity(self) -> str:
        """The digest of the weights of U-Net, VAE and text encoder, wherever they lie."""
        return weights_identity(self.folder)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to scaled latents (B, C, H/8, W/8), the mode of the VAE's distribution."""
        images = images.to(self.device, self.dtype)
        return self.vae.encode(images).latent_dist.mode() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to images (B, 3, 8h, 8w), float32 in [0, 1]."""
        images = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to the text encoder's last hidden states (B, L, D); "" is the null text. Longer ones are cut."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(self.device)
        return self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]

    def require_timestep(self, timestep: int) -> None:
        """ValueError for a timestep to cache references at that the noise schedule does not have."""
        if not 0 <= timestep < self.timesteps:
            raise ValueError(f"the cache's timestep is {timestep}; the backbone has 0 to {self.timesteps - 1}")

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The forward process: latents (B, C, h, w) with as much noise as timesteps (B,) ask for."""
        signal, share = self._signal_and_noise(timesteps)
        return (signal * latents.float() + share * noise.float()).to(latents.dtype)

    def training_target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the U-Net should predict, float32: the noise (paper Eq. 6), or v for a v-prediction model."""
        if self.prediction_type == "epsilon":
            return noise.float()
        if self.prediction_type == "v_prediction":
            signal, share = self._signal_and_noise(timesteps)
            return signal * noise.float() - share * latents.float()
        raise ValueError(f"the backbone predicts {self.prediction_type!r}; epsilon and v_prediction are known")

    def _signal_and_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas_cumprod[timesteps.to(self.alphas_cumprod.device)].view(-1, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()


def load_backbone(
    location: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Backbone:
    """Load a Stable Diffusion in diffusers' layout, frozen, from a local folder or by its name on the Hub.

    FileNotFoundError says where the weights are to be had; ValueError if the folder holds something else.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel

    folder = _local_folder(str(location))
    # Without its configuration transformers would build a text encoder of its own choice.
    names = (*(f"{part}/config.json" for part in WEIGHTED_PARTS), "scheduler/scheduler_config.json", "tokenizer")
    parts: dict[str, Any] = {}
    try:
        for name in names:
            if not (folder / name).exists():
                raise ValueError(f"{name} is missing")
        for part, load, argument in (
            ("unet", UNet2DConditionModel.from_pretrained, "torch_dtype"),
            ("vae", AutoencoderKL.from_pretrained, "torch_dtype"),
            ("text_encoder", CLIPTextModel.from_pretrained, "dtype"),
        ):
            module, info = load(folder, subfolder=part, output_loading_info=True, **{argument: dtype})
            # Left alone, weights that the file lacks would be random ones.
            if info["missing_keys"]:
                raise ValueError(f"{part} lacks the weights {', '.join(sorted(info['missing_keys'])[:3])}")
            parts[part] = module.to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        # Only the noise schedule matters here; the DDPM class reads every Stable Diffusion's.
        scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{location} is no complete Stable Diffusion in diffusers' layout: {reason}") from error
    vae, text_encoder, unet = parts["vae"], parts["text_encoder"], parts["unet"]
    return Backbone(vae, text_encoder, tokenizer, unet, scheduler, folder, str(location))


def weights_identity(folder: Path) -> str:
    """The sha256 over the weight files of U-Net, VAE and text encoder: the same wherever the folder lies."""
    total = hashlib.sha256()
    for part in WEIGHTED_PARTS:
        found = (sorted(f for p in patterns for f in (folder / part).glob(p)) for patterns in _WEIGHTS)
        files = next((files for files in found if files), [])
        if not files:
            raise FileNotFoundError(f"{folder / part} holds no weights")
        for file in files:
            total.update(f"{part} {weights_digest(file)}\n".encode())
    return total.hexdigest()


def _local_folder(location: str) -> Path:
    folder = Path(location).expanduser()
    if (folder / "model_index.json").is_file():
        return folder
    if folder.exists() or not is_hub_name(location):
        raise FileNotFoundError(
            f"no Stable Diffusion in {location!r}: give a local folder in diffusers' layout (with model_index.json) or "
            "a name on the Hub, such as stable-diffusion-v1-5/stable-diffusion-v1-5, whose page is "
            "https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5 (HF_TOKEN is for gated ones)"
        )
    return hub_folder(location, _FILES)
