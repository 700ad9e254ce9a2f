"""A pipeline for those who know diffusers: from_pretrained, a call that gives images, save_pretrained, push_to_hub."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from dreamcache.adapters import AdapterSet, adapters_folder
from dreamcache.backbone import Backbone, load_backbone
from dreamcache.cache import FeatureCache, cache_reference
from dreamcache.configs import SamplingConfig
from dreamcache.sampling import ddim_scheduler, sample_images
from shards.files import replace_file
from shards.hub import is_hub_name, keep_commit


class DreamCachePipeline:
    """A backbone and its adapters. `scheduler` is DDIM and may be replaced by any diffusers scheduler."""

    def __init__(self, backbone: Backbone, adapters: AdapterSet) -> None:
        adapters.check_backbone(backbone)
        self.backbone, self.adapters = backbone, adapters.to(backbone.device)
        self.scheduler: Any = ddim_scheduler(backbone)

    @classmethod
    def from_pretrained(
        cls,
        location: str | Path,
        adapters: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        torch_dtype: torch.dtype = torch.float32,
    ) -> "DreamCachePipeline":
        """A pipeline from a backbone and adapters, or from what `save_pretrained` wrote; all local or on the Hub.

        `adapters` may also be the authors' released `cross_attention-STEP.pt`. FileNotFoundError says where missing
        models are to be had; ValueError if backbone and adapters do not belong together.
        """
        if adapters is None:
            folder = adapters_folder(location)
            try:
                adapters, location = folder, json.loads((folder / "pipeline.json").read_text())["backbone"]
            except (OSError, ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{location} does not name its backbone: from_pretrained(backbone, adapters={str(location)!r})"
                ) from None
        backbone = load_backbone(location, device, torch_dtype)
        if str(adapters).endswith(".pt"):
            return cls(backbone, AdapterSet.from_released(adapters, backbone))
        return cls(backbone, AdapterSet.from_pretrained(adapters, backbone))

    def to(self, device: str | torch.device) -> "DreamCachePipeline":
        """Move all models to a device."""
        self.backbone.to(device)
        self.adapters.to(device)
        return self

    def cache(
        self, reference: Image.Image | Sequence[Image.Image], *, subject: str = "", seed: int = 0
    ) -> FeatureCache:
        """Cache a subject for any number of calls: one reference, or several that are joined.

        A reference is an RGBA cut-out or an image on white. `subject` is the subject's noun, for adapters that were
        trained with text in the cache.
        """
        return cache_reference(self.backbone, reference, seed, **self.adapters.cache_settings(subject)).joined()

    def __call__(
        self,
        prompt: str | Sequence[str],
        reference: Image.Image | Sequence[Image.Image] | FeatureCache,
        *,
        subject: str = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        image_guidance_scale: float | None = None,
        guidance: Literal["combined", "joint"] = "combined",
        negative_prompt: str | None = None,
        eta: float = 0.0,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        strength: float = 1.0,
        batch_size: int = 8,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """Sample images of one or more prompts; `.images` of what is returned are PIL images, prompt by prompt.

        `reference` is what `cache` takes, with `subject`, or returns, or a cache of one subject a prompt (see
        `FeatureCache.stack`). Image i is seeded by seed + i; the rest is as in SamplingConfig and `sample_images`.
        ValueError for a cache of any other number of subjects, and for an image scale where guidance is joint.
        """
        from diffusers import ImagePipelineOutput

        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, not {num_images_per_prompt}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        cache = reference if isinstance(reference, FeatureCache) else self.cache(reference, subject=subject)
        if cache.references not in (1, len(prompts)):
            held = f"the cache holds {cache.references} subjects for {len(prompts)} prompts"
            raise ValueError(f"{held}: give one, or one for each")
        rows = [row for row in range(len(prompts)) for _ in range(num_images_per_prompt)]
        scale = {} if image_guidance_scale is None else {"image_guidance_scale": image_guidance_scale}
        config = SamplingConfig(
            guidance=guidance, guidance_scale=guidance_scale, **scale, steps=num_inference_steps, eta=eta,
            negative_prompt=negative_prompt,
        )  # fmt: skip
        if scale:
            config.require_image_scale("image_guidance_scale")
        images = sample_images(
            self.backbone,
            self.adapters,
            cache.select(rows) if cache.references > 1 else cache,
            [prompts[row] for row in rows],
            config,
            seeds=range(seed, seed + len(rows)),
            strength=strength,
            scheduler=self.scheduler,
            batch_size=batch_size,
            progress=progress,
        )
        return ImagePipelineOutput(images=images)

    def save_pretrained(self, folder: str | Path, backbone: str | None = None) -> None:
        """Write the adapters, the backbone's name and a model card (README.md); the backbone itself stays where it is.

        `backbone` is the name that others find it under, by default where it was loaded from.
        """
        folder = Path(folder)
        self.adapters.save_pretrained(folder)
        name = backbone or self.backbone.location
        if backbone is None and (place := Path(name).expanduser()).exists():
            name = str(place.resolve())  # for whoever loads it from another working directory
        for file, text in (
            ("pipeline.json", json.dumps({"backbone": name}, indent=2) + "\n"),
            ("README.md", model_card(self.adapters, name)),
        ):
            replace_file(folder / file, text.encode())

    def push_to_hub(
        self, name: str, backbone: str | None = None, *, private: bool | None = None, token: str | None = None
    ) -> str:
        """Upload what `save_pretrained` writes to the Hub as NAME; returns the page's address.

        From then on NAME means that upload on this machine.

        ValueError if the backbone was loaded from a local folder and `backbone` does not say its name on the Hub.
        """
        from huggingface_hub import HfApi

        backbone = backbone or self.backbone.location
        if not is_hub_name(backbone) or Path(backbone).exists():
            raise ValueError(f"others have no {backbone}: say backbone=NAME, the backbone's name on the Hub")
        api = HfApi(token=token)
        page = str(api.create_repo(name, private=private, exist_ok=True))
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, backbone)
            uploaded = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload DreamCache adapters")
        keep_commit(name, uploaded.oid)
        return page


def model_card(adapters: AdapterSet, backbone: str) -> str:
    """The model card of adapters for a backbone of that name, in Markdown with the Hub's metadata before it."""
    config = adapters.config
    count = sum(parameter.numel() for parameter in adapters.parameters())
    noun = ', subject="teapot"' if "{subject}" in config.cache_prompt else ""
    base = [f"base_model: {backbone}", "base_model_relation: adapter"] if is_hub_name(backbone) else []
    return "\n".join([
        "---", *base, "library_name: dreamcache-pipeline", "pipeline_tag: text-to-image",
        "tags: [dreamcache, personalization, stable-diffusion]", "---", "",
        "# DreamCache adapters", "",
        "Personalized images from one reference without finetuning: the frozen U-Net of the backbone attends to the "
        "cached features of a reference image through these adapters "
        "([DreamCache](https://arxiv.org/abs/2411.17786)).", "",
        f"- backbone: `{backbone}`, weights `{adapters.backbone_identity}`",
        f"- trained parameters: {count:,}",
        f"- integration: {config.integration.replace('_', ' ')}",
        f"- layers: {', '.join(f'`{layer}`' for layer in adapters.layers)}",
        f"- reference cached at timestep {config.cache_timestep}, "
        + (f"with the text `{config.cache_prompt}`" if config.cache_prompt else "with null text")
        + (", the mid block's features alone" if config.single_resolution else ""), "",
        "```python",
        "from dreamcache import DreamCachePipeline",
        f'pipeline = DreamCachePipeline.from_pretrained("{backbone}", adapters="THIS FOLDER OR REPOSITORY")',
        f'image = pipeline("a teapot on a beach", reference=cutout{noun}).images[0]  '
        "# an RGBA cut-out or an image on white",
        "```", "",
        "The backbone's licence and its limits hold for these images too. Do not make images of people who have not "
        "agreed to it.", "",
    ])  # fmt: skip
