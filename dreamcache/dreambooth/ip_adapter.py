"""IP-Adapter, a baseline of the benchmark, on the backbone's own U-Net and by the benchmark's own seeds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from dreamcache.configs import SamplingConfig
from dreamcache.sampling import ddim_scheduler
from shards.hub import hub_folder, is_hub_name

if TYPE_CHECKING:
    from dreamcache.backbone import Backbone

# Where the public repository "h94/IP-Adapter" has them for SD 1.5, and a local folder must.
SUBFOLDER, WEIGHTS = "models", "ip-adapter_sd15.safetensors"


@contextmanager
def ip_adapted(backbone: "Backbone", location: str | Path, scale: float) -> Iterator[Any]:
    """A diffusers pipeline of the backbone with IP-Adapter of this scale; after it the U-Net is itself again.

    `location` is a local folder or a Hub name with models/ip-adapter_sd15.safetensors and models/image_encoder/.
    ValueError where they are not there or do not fit the backbone; of the Hub, errors as `hub_folder`.
    """
    from diffusers import StableDiffusionPipeline

    folder = Path(location).expanduser()
    if not folder.exists() and is_hub_name(str(location)):
        folder = hub_folder(str(location), (f"{SUBFOLDER}/{WEIGHTS}", f"{SUBFOLDER}/image_encoder/*"))
    before = dict(backbone.unet.attn_processors)
    pipeline = StableDiffusionPipeline(
        vae=backbone.vae, text_encoder=backbone.text_encoder, tokenizer=backbone.tokenizer, unet=backbone.unet,
        scheduler=ddim_scheduler(backbone), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    try:
        try:
            pipeline.load_ip_adapter(str(folder), subfolder=SUBFOLDER, weight_name=WEIGHTS)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{location}: no IP-Adapter for this backbone ({reason}); it needs {SUBFOLDER}/{WEIGHTS} and "
                f"{SUBFOLDER}/image_encoder, as https://huggingface.co/h94/IP-Adapter has them"
            ) from error
        pipeline.set_ip_adapter_scale(scale)
        yield pipeline
    finally:
        pipeline.unload_ip_adapter()
        backbone.unet.set_attn_processor(before)


@torch.no_grad()
def sample_ip_adapter(
    pipeline: Any,
    reference: Image.Image,
    prompts: Sequence[str],
    config: SamplingConfig,
    seeds: Sequence[int],
) -> list[Image.Image]:
    """Sample one RGB image a prompt, all at a time, from an `ip_adapted` pipeline, by the text scale alone.

    The reference is RGB, the same for all.
    """
    assert config.guidance_scale > 1, "diffusers would take both halves of the embeddings for references"
    embeds = pipeline.prepare_ip_adapter_image_embeds(reference, None, pipeline.device, 1, True)[0]
    images: list[Image.Image] = pipeline(
        list(prompts),
        negative_prompt=[config.negative_prompt or ""] * len(prompts),
        # The pipeline itself repeats a reference for the images of one prompt, not for several prompts.
        ip_adapter_image_embeds=[embeds.repeat_interleave(len(prompts), dim=0)],
        guidance_scale=config.guidance_scale,
        num_inference_steps=config.steps,
        eta=config.eta,
        # On the CPU, as for the other variants: the same seed is the same first noise.
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images
    return images
