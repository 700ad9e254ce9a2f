"""DINO and CLIP embeddings of images and prompts, with the preprocessing that the published scores were made with.

Both follow torchvision's reference transforms, written out in PIL and torch: the short side is resized bicubically with
antialiasing, the centre is cropped, and channels are normalized. DINO resizes to 8/7 of the model's image size (256 for
224), which the Hub's preprocessor for `facebook/dino-vits16` does not do; CLIP resizes to the image size itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError

from dreamcache.dreambooth.models import local_model, model_identity
from shards.sources import eight_bits

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def open_image(source: Path | Image.Image) -> Image.Image:
    """Open an image as 8-bit RGB: turned as its EXIF says, alpha laid over white, wider pixels by `eight_bits`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is no image, is cut short, or has floating-point pixels.
    """
    name = getattr(source, "filename", "image") if isinstance(source, Image.Image) else source
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        image = ImageOps.exif_transpose(image)  # this also reads the pixels, so that a cut file is found here
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such image") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: not a readable image ({error})") from error
    try:
        image = eight_bits(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def preprocess(
    image: Path | Image.Image, resize: int, crop: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Resize the short side to `resize`, crop the central `crop` x `crop`, normalize: (3, crop, crop) float32."""
    image = open_image(image)
    width, height = image.size
    if width <= height:
        size = (resize, int(resize * height / width))  # the long side is cut off, not rounded, as torchvision does
    else:
        size = (int(resize * width / height), resize)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    image = image.crop((left, top, left + crop, top + crop))
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@dataclass(frozen=True)
class DinoEmbedder:
    """DINO (ViT-S/16 for published scores) or DINOv2: the class token after the last layer norm, before any head."""

    model: Any
    identity: str
    size: int

    def preprocess(self, image: Path | Image.Image) -> torch.Tensor:
        """Preprocess one image: (3, S, S) float32 for the size S that is read, normalized by ImageNet's statistics."""
        return preprocess(image, round(self.size * 256 / 224), self.size, IMAGENET_MEAN, IMAGENET_STD)

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Path | Image.Image], batch_size: int = 32) -> torch.Tensor:
        """Embed images: (N, D) float32 on the CPU, of unit length; the batch size changes nothing beyond rounding."""
        rows = [
            self.model(pixels.to(self.model.device)).last_hidden_state[:, 0].float().cpu()
            for pixels in _batches(self, images, batch_size)
        ]
        return _unit(rows, self.model.config.hidden_size)


@dataclass(frozen=True)
class ClipEmbedder:
    """CLIP (ViT-B/32 for published scores): projected image and text embeddings."""

    model: Any
    tokenizer: Any
    identity: str

    def preprocess(self, image: Path | Image.Image) -> torch.Tensor:
        """Preprocess one image: (3, S, S) float32 for the model's image size S, normalized by CLIP's statistics."""
        size = self.model.config.vision_config.image_size
        return preprocess(image, size, size, CLIP_MEAN, CLIP_STD)

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Path | Image.Image], batch_size: int = 32) -> torch.Tensor:
        """Embed images: (N, D) float32 on the CPU, of unit length; the batch size changes nothing beyond rounding."""
        rows = [
            self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output.float().cpu()
            for pixels in _batches(self, images, batch_size)
        ]
        return _unit(rows, self.model.config.projection_dim)

    @torch.inference_mode()
    def embed_prompts(self, prompts: Sequence[str], batch_size: int = 32) -> torch.Tensor:
        """Embed prompts: (N, D) float32 on the CPU, of unit length.

        Raises:
            ValueError: when a prompt has more tokens than the model reads: its end would not be scored.
        """
        limit = self.model.config.text_config.max_position_embeddings
        rows = []
        for start in range(0, len(prompts), batch_size):
            batch = list(prompts[start : start + batch_size])
            tokens = self.tokenizer(batch, padding=True, return_tensors="pt").to(self.model.device)
            if tokens.input_ids.shape[1] > limit:
                longest = max(batch, key=len)
                raise ValueError(f"a prompt has {tokens.input_ids.shape[1]} tokens, CLIP reads {limit}: {longest!r}")
            features = self.model.get_text_features(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            ).pooler_output
            rows.append(features.float().cpu())
        return _unit(rows, self.model.config.projection_dim)


def load_dino(location: str | Path, device: str | torch.device = "cpu") -> DinoEmbedder:
    """Load DINO, float32, from a local folder or by name ("facebook/dino-vits16" for published scores).

    Raises:
        FileNotFoundError: when there is no such model.
        ValueError: when it is not a ViT, or its weights are incomplete.
    """
    from transformers import ViTModel

    # The first DINO has no pooler; one made up of random weights must not be in the way.
    model = _load(ViTModel, location, add_pooling_layer=False)
    return DinoEmbedder(model.to(device), model_identity(location), model.config.image_size)


def load_dinov2(location: str | Path, device: str | torch.device = "cpu") -> DinoEmbedder:
    """Load DINOv2, float32, from a local folder or by name, such as "facebook/dinov2-small"; errors as `load_dino`."""
    from transformers import Dinov2Model

    model = _load(Dinov2Model, location)
    # Its table of positions is for 518 pixels, but 224 are what it is used with; positions are interpolated.
    return DinoEmbedder(model.to(device), model_identity(location), min(model.config.image_size, 224))


def load_clip(location: str | Path, device: str | torch.device = "cpu") -> ClipEmbedder:
    """Load CLIP, float32, from a local folder or by name ("openai/clip-vit-base-patch32" for published scores).

    Raises:
        FileNotFoundError: when there is no such model.
        ValueError: when it is not a CLIP, or its weights are incomplete.
    """
    from transformers import AutoTokenizer, CLIPModel

    model = _load(CLIPModel, location)
    tokenizer = AutoTokenizer.from_pretrained(local_model(location))
    return ClipEmbedder(model.to(device), tokenizer, model_identity(location))


def _load(architecture: Any, location: str | Path, **options: Any) -> Any:
    """Load a frozen model; weights that are missing are an error, where transformers would make them up."""
    folder = local_model(location)
    try:
        model, report = architecture.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{location}: cannot be loaded as {architecture.__name__}: {reason}") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        lacking = sorted([*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])])
        raise ValueError(
            f"{location}: not a whole {architecture.__name__}: {len(lacking)} weights are missing, such as {lacking[0]}"
        )
    return model.requires_grad_(False).eval()


def _batches(
    embedder: DinoEmbedder | ClipEmbedder, images: Sequence[Path | Image.Image], batch_size: int
) -> Iterator[torch.Tensor]:
    for start in range(0, len(images), batch_size):
        yield torch.stack([embedder.preprocess(image) for image in images[start : start + batch_size]])


def _unit(rows: list[torch.Tensor], width: int) -> torch.Tensor:
    """Join batches and scale every row to length 1."""
    return torch.nn.functional.normalize(torch.cat(rows) if rows else torch.empty(0, width), dim=-1)
