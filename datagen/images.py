"""Target images: one for each caption, by a text-to-image diffusion model (paper S1: SDXL, 25 steps, guidance 3.5)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field

from datagen.config import Dtype, Execution, StageConfig, derived_seed, torch_device
from datagen.identity import pinned
from shards.files import read_json_lines
from shards.markers import Marker
from shards.stage import ShardPlan

if TYPE_CHECKING:
    import numpy as np

IMAGES_VERSION = 1


class ImagesConfig(StageConfig):
    """How target images are made. `vae` replaces the model's own decoder, `size` is in pixels (none: the model's)."""

    LOCATIONS: ClassVar[tuple[str, ...]] = ("model", "vae")
    model: str
    vae: str | None = None
    steps: int = Field(default=25, ge=1, description="paper S1")
    guidance_scale: float = Field(default=3.5, ge=0, description="paper S1")
    negative_prompt: str = ""
    size: int | None = Field(default=None, ge=8)
    stored_size: int | None = Field(default=None, ge=8, description="side of the stored image; none keeps its size")
    jpeg_quality: int = Field(default=95, ge=1, le=100)
    min_brightness: float = Field(default=0.02, ge=0, le=1, description="mean below this is a black image")
    min_contrast: float = Field(default=0.01, ge=0, le=1, description="standard deviation below this is a flat image")
    dtype: Dtype = "float32"
    execution: Execution = Execution()


class Painter(Protocol):
    """What the stage needs of a text-to-image model: for each caption an image drawn from noise of the seed."""

    def paint(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Images (B, H, W, 3), float in [0, 1], in the order of the captions; not finite where the model failed."""


def run(plan: ShardPlan, config: ImagesConfig, painter: Painter, report: Callable[[int, int], None]) -> Marker:
    """Write a shard's images as KEY.jpg beside the caption's record; broken ones are rejected."""
    records = list(read_json_lines(plan.inputs[0]))
    with plan.writing(config.execution.model_dump()) as out:
        for start in range(0, len(records), config.execution.batch_size):
            batch = records[start : start + config.execution.batch_size]
            seeds = [derived_seed(record["seed"], "image") for record in batch]
            images = painter.paint([record["caption"] for record in batch], seeds)
            for record, image in zip(batch, images, strict=True):
                models = {**record["models"], **{f"images.{role}": name for role, name in plan.spec.models.items()}}
                record = {**record, "models": models}
                if (fault := image_fault(image, config)) is not None:
                    out.reject(record, fault)
                else:
                    out.add(record, {"jpg": encode_jpeg(image, config)})
            report(start + len(batch), len(records))
    assert out.marker is not None
    return out.marker


def image_fault(image: np.ndarray, config: ImagesConfig) -> str | None:
    """The reason to reject an image (H, W, 3), float in [0, 1], or None."""
    import numpy as np

    if not np.isfinite(image).all():
        return "image not finite"
    if image.mean() < config.min_brightness:
        return "black image"
    if image.std() < config.min_contrast:
        return "flat image"
    return None


def encode_jpeg(image: np.ndarray, config: ImagesConfig) -> bytes:
    """An image (H, W, 3), float in [0, 1], as JPEG bytes of the stored size."""
    from PIL import Image

    picture = Image.fromarray((image * 255).round().astype("uint8"))
    if config.stored_size is not None and picture.size != (config.stored_size, config.stored_size):
        picture = picture.resize((config.stored_size, config.stored_size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=config.jpeg_quality, subsampling=0)
    return buffer.getvalue()


class DiffusersPainter:
    """Any text-to-image pipeline of diffusers, named by the folder's model_index.json; noise is drawn on the CPU with
    one generator a record, so it is the same on every device and in every batch."""

    def __init__(self, config: ImagesConfig) -> None:
        import torch
        from diffusers import AutoencoderKL, DiffusionPipeline

        self.config = config
        dtype = getattr(torch, config.dtype)
        device = torch_device(config.execution)
        replaced: dict[str, Any] = {}
        if config.vae is not None:
            replaced["vae"] = AutoencoderKL.from_pretrained(
                config.vae, **pinned(config.vae), use_safetensors=True, dtype=dtype
            )
        pipeline = DiffusionPipeline.from_pretrained(
            config.model, **pinned(config.model), use_safetensors=True, dtype=dtype, **replaced
        )
        self.pipeline = pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)

    def paint(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Images (B, H, W, 3), float in [0, 1], in the order of the captions; not finite where the model failed."""
        import numpy as np
        import torch

        size: Mapping[str, int] = {}
        if self.config.size is not None:
            size = {"height": self.config.size, "width": self.config.size}
        images = self.pipeline(
            prompt=list(captions),
            negative_prompt=[self.config.negative_prompt] * len(captions),
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
            **size,
        ).images
        return np.asarray(images, dtype=np.float32)
