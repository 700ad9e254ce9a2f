"""Target images: one for each caption, by a text-to-image diffusion model (paper S1: SDXL, 25 steps, guidance 3.5)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field

from datagen.config import Dtype, Execution, StageConfig, derived_seed, torch_device
from datagen.identity import loading
from shards.files import copy_keys, read_json_lines
from shards.markers import Marker
from shards.memory import in_batches
from shards.stage import ShardPlan

if TYPE_CHECKING:
    import numpy as np

IMAGES_VERSION = 2


class ImagesExecution(Execution):
    """How the image model runs."""

    compile: bool = Field(default=False, description="compile the network: minutes at first, then faster steps")
    channels_last: bool = Field(default=False, description="lay images out as tensor cores like them")
    offload: bool = Field(default=False, description="keep on the GPU just the part at work, for small GPUs")


class ImagesConfig(StageConfig):
    """How target images are made. `vae` replaces the model's own decoder, `size` is in pixels (none: the model's).

    `safety_model` is a checker that images are shown to, such as CompVis/stable-diffusion-safety-checker; none by
    default.
    """

    LOCATIONS: ClassVar[tuple[str, ...]] = ("model", "vae", "safety_model")
    model: str
    vae: str | None = None
    safety_model: str | None = None
    steps: int = Field(default=25, ge=1, description="paper S1")
    guidance_scale: float = Field(default=3.5, ge=0, description="paper S1")
    negative_prompt: str = ""
    size: int | None = Field(default=None, ge=8, multiple_of=8)
    stored_size: int | None = Field(default=None, ge=8, description="side of the stored image; none keeps its size")
    jpeg_quality: int = Field(default=95, ge=1, le=100)
    min_brightness: float = Field(default=0.02, ge=0, le=1, description="mean below this is a black image")
    min_contrast: float = Field(default=0.01, ge=0, le=1, description="standard deviation below this is a flat image")
    dtype: Dtype = "float32"
    execution: ImagesExecution = ImagesExecution()


class Painter(Protocol):
    """What the stage needs of a text-to-image model: for each caption an image drawn from noise of the seed."""

    def paint(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Images (B, H, W, 3), float in [0, 1], in the order of the captions; not finite where the model failed."""

    def unsafe(self, images: np.ndarray) -> Sequence[bool]:
        """Which of the images (B, H, W, 3), float in [0, 1], nobody should see."""


def run(
    plan: ShardPlan,
    config: ImagesConfig,
    painter: Painter,
    execution: dict[str, Any],
    report: Callable[[int, int], None],
) -> Marker:
    """Write a shard's images as KEY.jpg beside the caption's record; broken ones are rejected.

    `execution` and `report` are as in `in_batches`.
    """
    records = list(_copies(read_json_lines(plan.inputs[0]), plan.spec.copies))

    def paint(batch: Sequence[tuple[dict[str, Any], int]]) -> tuple[np.ndarray, Sequence[bool]]:
        seeds = [seed for _, seed in batch]
        images = painter.paint([record["caption"] for record, _ in batch], seeds)
        return images, painter.unsafe(images)

    with plan.writing(execution) as out:
        for batch, (images, unsafe) in in_batches(records, execution, paint, report):
            for (record, _), image, flagged in zip(batch, images, unsafe, strict=True):
                models = {**record["models"], **{f"images.{role}": name for role, name in plan.spec.models.items()}}
                record = {**record, "models": models}
                if (fault := image_fault(image, config)) is not None:
                    out.reject(record, fault)
                elif flagged:
                    out.reject(record, "unsafe image")
                else:
                    out.add(record, {"jpg": encode_jpeg(image, config)})
    return out.marker


def _copies(records: Iterable[dict[str, Any]], copies: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Each record as often as it gets an image, with the noise's seed; the first one's is the same in any number."""
    for record in records:
        for number, key in enumerate(copy_keys(record["key"], copies)):
            yield {**record, "key": key}, derived_seed(record["seed"], "image", *([number] if number else []))


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
            with loading(config.vae, "images.vae") as pinned:
                replaced["vae"] = AutoencoderKL.from_pretrained(config.vae, **pinned, use_safetensors=True, dtype=dtype)
        with loading(config.model, "images.model") as pinned:
            pipeline = DiffusionPipeline.from_pretrained(
                config.model, **pinned, use_safetensors=True, dtype=dtype, **replaced
            )
        if hasattr(pipeline, "watermark"):
            pipeline.watermark = None  # SDXL's, where a package that no recipe knows of is installed
        execution = config.execution
        if execution.channels_last:
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        if execution.compile:
            pipeline.unet.compile()
        if execution.offload and device.type != "cpu":
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.checker = None if config.safety_model is None else _SafetyChecker(config.safety_model, device)

    def paint(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Images (B, H, W, 3), float in [0, 1], in the order of the captions; not finite where the model failed."""
        import numpy as np
        import torch

        size: Mapping[str, int] = {}
        if self.config.size is not None:
            size = {"height": self.config.size, "width": self.config.size}
        # No negative prompt is not an empty one: SDXL was trained with zeros in its place.
        negative = [self.config.negative_prompt] * len(captions) if self.config.negative_prompt else None
        images = self.pipeline(
            prompt=list(captions),
            negative_prompt=negative,
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
            **size,
        ).images
        return np.asarray(images, dtype=np.float32)

    def unsafe(self, images: np.ndarray) -> Sequence[bool]:
        """Which of the images (B, H, W, 3), float in [0, 1], the safety model objects to; none without one."""
        return [False] * len(images) if self.checker is None else self.checker.unsafe(images)


class _SafetyChecker:
    """The checker of the first Stable Diffusion: CLIP embeddings too near to those of certain concepts."""

    def __init__(self, location: str, device: Any) -> None:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        with loading(location, "images.safety_model") as pinned:
            self.processor = CLIPImageProcessor.from_pretrained(location, **pinned)
            model = StableDiffusionSafetyChecker.from_pretrained(location, **pinned, use_safetensors=True)
        self.model = model.to(device).eval()

    def unsafe(self, images: np.ndarray) -> Sequence[bool]:
        import numpy as np

        shown = np.nan_to_num(images)
        pixels = self.processor(list((shown * 255).round().astype(np.uint8)), return_tensors="pt").pixel_values
        _, flags = self.model(images=shown, clip_input=pixels.to(self.model.device))
        return [bool(flag) for flag in flags]
